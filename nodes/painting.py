"""Paint by Process: plan, draft, inspect, refine in one node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from .questions import field_help
from .stages import ShownPainter, ShownThinker, Stages, as_latent, canvas_of, interrupt, thinker_of
from .trajectories import Kept, key_of
from .types import CATEGORY, Critic, Painter, Plan, Trajectory, to_comfy, to_engine

log = logging.getLogger(__name__)


def outputs() -> list[Any]:
    """Of every node that paints."""
    return [
        io.Image.Output(display_name="image", tooltip="The result: the best picture, not the last."),
        io.Latent.Output(
            display_name="latent", tooltip="Its latent, as KSampler gives it; nothing for painters that keep none."
        ),
        Trajectory.Output(display_name="trajectory", tooltip="The whole way, for Save Trajectory and Process Step."),
        io.Image.Output(
            display_name="filmstrip",
            tooltip="A column a step: what was asked, the picture, whether it was kept, and each fact.",
        ),
        io.String.Output(display_name="report", tooltip="What came of it in words, with P of each fact."),
    ]


class PaintByProcess(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..process import Settings

        plain = Settings()
        return io.Schema(
            node_id="DualProcessPaintByProcess",
            display_name="Paint by Process",
            category=CATEGORY,
            description="Makes a picture step by step: the critic plans, the painter drafts, the critic inspects each "
            "fact, and what is missing or wrong is painted, inspected, and kept or taken back, until all is there or "
            "the budget is used up. Cancel keeps the steps so far, and the same run goes on from them.",
            search_aliases=["think in strokes", "plan", "refine", "agent", "interleaved"],
            inputs=[
                Painter.Input("painter", tooltip="Who paints, from Painter or Load Demo Strokes."),
                Critic.Input("critic", tooltip="Who plans, inspects and says what is wrong."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the picture is to show. Not used where a plan is connected.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,  # what a browser holds exactly
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="The same seed gives the same steps.",
                ),
                io.Int.Input("budget", default=plain.budget, min=1, max=1000, tooltip=field_help(Settings, "budget")),
                io.Int.Input(
                    "refinements",
                    default=plain.refinements,
                    min=0,
                    max=100,
                    tooltip=field_help(Settings, "refinements"),
                ),
                io.Boolean.Input(
                    "whole_draft",
                    default=plain.whole_draft,
                    label_on="the whole prompt",
                    label_off="the background",
                    tooltip=field_help(Settings, "whole_draft"),
                ),
                Plan.Input("plan", optional=True, tooltip="A plan from Plan Image, in place of the prompt."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture to begin with, in place of a draft: what it lacks is painted into it. One "
                    "picture; it is encoded once.",
                ),
                Trajectory.Input(
                    "resume",
                    optional=True,
                    tooltip="A trajectory from Load Trajectory that was cancelled, failed or killed, to go on with: "
                    "everything else has to be as it was, only the budget may be larger. Not needed to run the very "
                    "same graph again, which goes on by itself.",
                ),
                io.Int.Input(
                    "restarts",
                    default=plain.restarts,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip=field_help(Settings, "restarts"),
                ),
                io.Float.Input(
                    "restart_below",
                    default=plain.restart_below,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip=field_help(Settings, "restart_below"),
                ),
                io.Float.Input(
                    "keep_psnr",
                    default=plain.keep_psnr,
                    min=0.0,
                    max=100.0,
                    step=1.0,
                    advanced=True,
                    tooltip=field_help(Settings, "keep_psnr"),
                ),
                io.Int.Input(
                    "patience",
                    default=plain.patience,
                    min=1,
                    max=100,
                    advanced=True,
                    tooltip=field_help(Settings, "patience"),
                ),
                io.Boolean.Input(
                    "inspect", default=plain.inspect, advanced=True, tooltip=field_help(Settings, "inspect")
                ),
                io.Boolean.Input(
                    "roll_back", default=plain.roll_back, advanced=True, tooltip=field_help(Settings, "roll_back")
                ),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        painter: Any,
        critic: Any,
        prompt: str,
        seed: int,
        plan: Any = None,
        image: Tensor | None = None,
        resume: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..core.errors import ProcessError
        from ..process import Settings, paint
        from ..process.resuming import check_same

        if plan is None and not prompt.strip():
            raise ProcessError("The prompt is empty: say what the picture is to show, or connect a plan.")
        begin = None
        if image is not None:
            picture = one_picture(image)
            settings |= {"restarts": 0, "whole_draft": True}  # it would be the same, and may show anything

            def begin() -> Any:
                return canvas_of(painter, picture)

        wanted, chosen = prompt if plan is None else plan, Settings(**settings)
        stages, thinker = Stages(chosen.budget, cls.hidden.unique_id), thinker_of(critic)
        kept = Kept(key_of(cls.hidden.prompt, cls.hidden.unique_id, image))
        if resume is None:
            resume = kept.earlier(lambda t: check_same(t, wanted, painter, thinker, asdict(chosen), seed))

        def on_step(painting: Any) -> None:
            kept(painting)
            stages.on_step(painting)

        done = 0 if resume is None else len(resume.trajectory.steps)
        with kept_where_it_ends_early(stages, kept):
            painting = paint(
                wanted,
                ShownPainter(painter, stages, begin, done),
                ShownThinker(thinker, stages),
                chosen,
                seed,
                on_step,
                stages.is_cancelled,
                resume,
            )
        if stages.is_cancelled():
            log.info("Cancelled: the steps so far are in %s.", kept.whole(painting))
            interrupt()
        kept.discard()
        return finished(painting, stages)


@contextmanager
def kept_where_it_ends_early(stages: Stages, kept: Kept) -> Iterator[None]:
    """A process inside that fails is written down whole; one that is cancelled before its first picture ends the run.

    Raises:
        InterruptProcessingException: cancelled.
        ProcessError: something failed; the message says where the steps so far lie.
    """
    from ..core.errors import ProcessError, StopRequested
    from ..process import ProcessFailed

    try:
        yield
    except ProcessFailed as error:
        sentence = f"{error} They lie in {kept.whole(error.painting)}; Load Trajectory lists them."
        if comfy.model_management.is_oom(error.cause):
            log.error("%s", sentence)
            stages.say(sentence)
            raise error.cause from None  # ComfyUI knows what to do where memory is full
        raise ProcessError(sentence) from error.cause
    except (ProcessError, StopRequested):
        if stages.is_cancelled():
            interrupt()
        raise


def finished(painting: Any, stages: Stages) -> io.NodeOutput:
    """What a node that paints gives."""
    from ..process.files import filmstrip, pixels
    from ..process.words import trajectory_in_words

    report = trajectory_in_words(painting.trajectory)
    stages.say("\n".join(report.splitlines()[:2]))
    strip = pixels(filmstrip(painting.trajectory, painting.pictures))
    return io.NodeOutput(to_comfy(painting.picture), as_latent(painting.canvas), painting, to_comfy(strip), report)


def one_picture(image: Tensor) -> Tensor:
    """IMAGE of one -> a picture [1, 3, H, W] in [0, 1]. Raises ProcessError where there are several."""
    from ..core.errors import ProcessError

    if len(image) != 1:
        raise ProcessError(f"Expected one picture, got a batch of {len(image)}: take one with Image From Batch.")
    return to_engine(image)


NODES = [PaintByProcess]
