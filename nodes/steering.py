"""Process Step: one stroke by hand."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .painting import finished, outputs
from .stages import ShownPainter, ShownThinker, Stages, canvas_of, interrupt, thinker_of
from .types import CATEGORY, Critic, Painter, Trajectory

ALWAYS, IF_BETTER = "always", "if better"
log = logging.getLogger(__name__)


class ProcessStep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessProcessStep",
            display_name="Process Step",
            category=CATEGORY,
            description="Steers a picture by hand: one stroke on the best picture of a trajectory, by your words or by "
            "the plan, inspected like the others. Put several behind each other; begin with Paint by Process and a "
            "budget of 1.",
            search_aliases=["edit", "inpaint", "steer", "stroke"],
            inputs=[
                Painter.Input("painter", tooltip="Who paints."),
                Critic.Input("critic", tooltip="Who inspects the new picture."),
                Trajectory.Input(
                    "trajectory", tooltip="What has been painted so far, from Paint by Process or Load Trajectory."
                ),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="",
                    tooltip="What is to be changed, such as: add a red boat on the left. Empty: the plan's next stroke "
                    "whose facts are not held.",
                ),
                io.String.Input(
                    "local_prompt",
                    default="",
                    tooltip="What is then to be seen in the region, such as: a red boat. For a painter that inpaints; "
                    "empty: the instruction.",
                ),
                io.Combo.Input(
                    "keep",
                    options=[ALWAYS, IF_BETTER],
                    default=ALWAYS,
                    tooltip="Whether the new picture is the one to go on from. if better: only where nothing that was "
                    "held is lost, the rest is kept, and the plan's facts are held better than before.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,  # what a browser holds exactly
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Another seed makes another attempt.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to paint, of the picture's size: the smallest rectangle around it is the region. "
                    "Without one: the region of the plan's stroke, or the whole picture.",
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        painter: Any,
        critic: Any,
        trajectory: Any,
        instruction: str,
        local_prompt: str,
        keep: str,
        seed: int,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..core.errors import StopRequested
        from ..process import steer

        stages = Stages(1, cls.hidden.unique_id)
        stroke = wanted_stroke(trajectory, instruction, local_prompt, mask)
        best = trajectory.trajectory.steps[trajectory.trajectory.best].picture
        start = replace(trajectory, canvases={**trajectory.canvases, best: paintable(painter, trajectory)})
        thinker = ShownThinker(thinker_of(critic), stages)
        try:
            painting = steer(start, stroke, ShownPainter(painter, stages), thinker, seed, keep == IF_BETTER)
        except StopRequested:
            interrupt()
        stages.on_step(painting)
        return finished(painting, stages)


def wanted_stroke(painting: Any, instruction: str, local_prompt: str, mask: Tensor | None) -> Any:
    """The plan's next one, or the user's; in the mask's region where there is one."""
    from ..process import Stroke, next_stroke
    from ..process.states import CHANGE
    from ..process.steering import BY_HAND

    if instruction.strip():
        stroke = Stroke(BY_HAND, CHANGE, instruction.strip(), local_prompt.strip())
    else:
        stroke = next_stroke(painting.trajectory)
    return stroke if mask is None else replace(stroke, region=region_of(mask, *painting.picture.shape[:-3:-1]))


def region_of(mask: Tensor, width: int, height: int) -> Any:
    """The smallest rectangle around a MASK [1, H, W] or [H, W] of a picture's size.

    Raises:
        ProcessError: several masks, another size, or nothing in it.
    """
    from ..core.errors import ProcessError
    from ..process import Region

    masks = mask.reshape(-1, *mask.shape[-2:])
    if len(masks) != 1:
        raise ProcessError(f"Expected one mask, got {len(masks)}.")
    if tuple(masks.shape[1:]) != (height, width):
        raise ProcessError(
            f"Expected a mask of the picture's size, {width} × {height} (width × height), got {masks.shape[2]} × "
            f"{masks.shape[1]}. Resize it, or draw it on the picture that is to be changed."
        )
    rows, columns = (masks[0] > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise ProcessError("The mask is empty: draw where to paint, or disconnect it.")
    return Region(
        float(columns.min()) / width,
        float(rows.min()) / height,
        float(columns.max() + 1) / width,
        float(rows.max() + 1) / height,
    )


def paintable(painter: Any, painting: Any) -> Any:
    """The painting's canvas as this painter has it: encoded anew where another one made it, or it comes from a file."""
    made_by, weights = painting.trajectory.models.get("painter"), painter.info.weights_sha256
    if painting.canvas.latent is not None and isinstance(made_by, dict) and made_by.get("weights_sha256") == weights:
        return painting.canvas
    log.info("The picture is encoded anew: the painter is another one than before, or the trajectory is from a file.")
    return canvas_of(painter, painting.picture)


NODES = [ProcessStep]
