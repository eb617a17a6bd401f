"""Distill Process: what was painted step by step as prompts and a loss, so that one pass learns it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .prompts import encode, prompt_lines
from .trajectories import saved
from .types import CATEGORY, Critic, Loss, Prompts, PromptSet, VqaTerms, outside_inference_mode
from .types import Trajectory as TrajectorySocket

RESULTS, STROKES, FAILURES = TEACH = ("results", "strokes", "what failed")
MOST = 64  # trajectories by wire


class DistillProcess(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessDistillProcess",
            display_name="Distill Process",
            category=CATEGORY,
            description="Makes of pictures that were painted step by step what Distill LoRA learns from: prompts, the "
            "facts of their plans as questions, and pictures to come near to.",
            search_aliases=["supervision", "trajectory", "distillation", "dataset"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the MODEL that is to learn."),
                Critic.Input("critic", tooltip="Who is asked about the facts while the LoRA is trained."),
                io.Combo.Input(
                    "teach",
                    options=list(TEACH),
                    default=RESULTS,
                    tooltip="results: one pass is to paint what the process has painted of the same prompt and noise, "
                    "if it holds every fact. strokes: an editing model that sees reference latents (Flux "
                    "Kontext, FLUX.2) is to carry out each stroke and leave the rest. what failed: only questions, on "
                    "facts that failed on the way.",
                ),
                io.Float.Input(
                    "target_weight",
                    default=30.0,
                    min=0.01,
                    max=10000.0,
                    step=0.1,
                    tooltip="How much the squared distance to the pictures weighs beside the questions.",
                ),
                io.String.Input(
                    "held_out",
                    multiline=True,
                    default="",
                    tooltip="Prompts that are not trained on, one a line: Distill LoRA shows their pictures and judges "
                    "by them. Empty: training prompts with other noise. Not for strokes.",
                ),
                io.String.Input(
                    "saved",
                    default="",
                    tooltip="The beginning of names as Load Trajectory lists them, such as trajectories/harbour: these "
                    "are learnt from, too. Empty: none.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="What the FluxGuidance node sets, for models such as Flux dev. 0: as the model has it.",
                ),
                Loss.Input("loss", optional=True, tooltip="A VQA Loss to add to; its questions are for all prompts."),
                io.Autogrow.Input(
                    "trajectories",
                    template=io.Autogrow.TemplatePrefix(
                        TrajectorySocket.Input("trajectory", tooltip="From Paint by Process, Process Step or a file."),
                        prefix="trajectory",
                        min=0,
                        max=MOST,
                    ),
                    optional=True,
                    tooltip="One socket a picture. Empty ones are left out.",
                ),
            ],
            outputs=[
                Prompts.Output(display_name="prompts", tooltip="For Distill LoRA, together with the loss."),
                Loss.Output(display_name="loss", tooltip="For Distill LoRA, together with the prompts."),
                io.String.Output(display_name="report", tooltip="How much there is to learn."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, saved: str = "", **others: Any) -> Any:
        return [(name, (folder / "trajectory.json").stat().st_mtime_ns) for name, folder in chosen(saved)]

    @classmethod
    def execute(
        cls,
        clip: Any,
        critic: Any,
        teach: str,
        target_weight: float,
        held_out: str = "",
        saved: str = "",
        guidance: float = 0.0,
        loss: VqaTerms | None = None,
        trajectories: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        from ..core.errors import ProcessError
        from ..distillation import Recipe
        from ..process.files import load_painting

        paintings = [painting for painting in (trajectories or {}).values() if painting is not None]
        paintings += [load_painting(folder) for _, folder in chosen(saved)]
        if not paintings:
            raise ProcessError("There is no trajectory: connect one, or name saved ones.")
        with outside_inference_mode():
            data, references = lesson(teach, paintings, target_weight)
            recipe = Recipe.from_dict(data)
            encoded = [encode(clip, prompt, guidance) for prompt in recipe.prompts]
            if references:
                encoded = [shown(one, canvas) for one, canvas in zip(encoded, references, strict=True)]
            lines = prompt_lines(held_out) if teach != STROKES else []
            kept_back = tuple(line for line in lines if line not in recipe.prompts)
            prompts = PromptSet(
                tuple(encoded), recipe.prompts, tuple(encode(clip, line, guidance) for line in kept_back), kept_back
            )
        before = loss or VqaTerms(())
        terms = (*before.terms, (critic, recipe.questions))
        made = replace(before, terms=terms, targets=recipe.targets, target_weight=target_weight)
        report = (
            f"Trajectories: {len(paintings)}. Prompts: {len(recipe.prompts)}. Questions: {len(recipe.questions)}. "
            f"Pictures to come near to: {len(recipe.targets)}."
        )
        return io.NodeOutput(prompts, made, report)


def chosen(beginning: str) -> list[tuple[str, Any]]:
    """Name and folder of each saved trajectory whose name begins so; none of nothing."""
    beginning = beginning.strip()
    return [(name, folder) for name, folder in sorted(saved().items()) if beginning and name.startswith(beginning)]


def lesson(teach: str, paintings: list[Any], target_weight: float) -> tuple[dict[str, Any], list[Any]]:
    """A recipe's plain data, and the canvases that its prompts are shown with, if they are."""
    from ..process import failure_lesson, result_lesson, step_lesson

    if teach == STROKES:
        return step_lesson(paintings, target_weight)
    if teach == FAILURES:
        return failure_lesson(painting.trajectory for painting in paintings), []
    return result_lesson(paintings, target_weight), []


def shown(conditioning: Any, canvas: Any) -> Any:
    """A CONDITIONING beside the canvas that is to be changed, as the node ReferenceLatent gives it."""
    from ..core.errors import ProcessError
    from ..painters.comfy.conditioning import with_reference

    if not isinstance(canvas.latent, Tensor):
        raise ProcessError("The trajectory has no latents of its pictures, so that no editor can be shown them.")
    return with_reference(conditioning, canvas.latent.clone())


NODES = [DistillProcess]
