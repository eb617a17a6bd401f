"""Prompts to train on, and prompts that are kept back to judge by: several of them on one wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .refusals import refused
from .types import CATEGORY, Prompts, PromptSet, outside_inference_mode

MAX_CONDITIONINGS = 64
NO_FILE = "(none: the text above)"
EXAMPLE = """# one prompt a line; lines that begin with # are left out
a day sky over the sea
a sunset sky over the sand with a tree
a night sky over the grass with a house
a day sky over the grass with a ball
a sunset sky over the sea with a house
a night sky over the sand"""
EXAMPLE_HELD_OUT = """the sea under a sunset sky with a tree
the grass under a day sky
the sand under a night sky with a ball"""


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text, one a line; blank lines and lines that begin with # are left out, and repetitions."""
    lines = (line.strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def text_files() -> list[str]:
    folder = Path(folder_paths.get_input_directory())
    return [NO_FILE, *sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.txt"))]


class TrainingPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessTrainingPrompts",
            display_name="Training Prompts",
            category=CATEGORY,
            description="Prompts to train on, one a line, encoded with a CLIP. More of them make a LoRA that holds for "
            "new prompts, too.",
            search_aliases=["prompts", "captions", "prompt list"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the MODEL."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=EXAMPLE,
                    tooltip="Training prompts, one a line. Blank lines and lines that begin with # are left out.",
                ),
                io.String.Input(
                    "held_out",
                    multiline=True,
                    default=EXAMPLE_HELD_OUT,
                    tooltip="Prompts that are not trained on, one a line: Distill LoRA shows their pictures and judges "
                    "by them. Empty: training prompts with other noise.",
                ),
                io.Combo.Input(
                    "file",
                    options=text_files(),
                    default=NO_FILE,
                    advanced=True,
                    tooltip="A text file of ComfyUI's input folder, one prompt a line, instead of the text above.",
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
            ],
            outputs=[Prompts.Output(display_name="prompts", tooltip="For Distill LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = NO_FILE, **others: Any) -> Any:
        if file == NO_FILE:
            return NO_FILE
        path = text_file(file)
        return path.stat().st_mtime_ns if path.is_file() else file

    @classmethod
    def validate_inputs(cls, file: str = NO_FILE) -> bool | str:
        if file == NO_FILE or text_file(file).is_file():
            return True
        return refused(cls, f"There is no {file!r} in ComfyUI's input folder: put it there, or choose another file.")

    @classmethod
    def execute(
        cls, clip: Any, text: str, held_out: str = "", file: str = NO_FILE, guidance: float = 0.0
    ) -> io.NodeOutput:
        from ..distillation import RecipeError

        if clip is None:
            raise RecipeError("The CLIP is missing: its loader found no text encoder in the file. Choose another one.")
        if file != NO_FILE:
            text = text_file(file).read_text(encoding="utf-8-sig")
        prompts = prompt_lines(text)
        if not prompts:
            raise RecipeError("There is no training prompt: write at least one, one a line.")
        kept_back = [line for line in prompt_lines(held_out) if line not in prompts]
        with outside_inference_mode():
            encoded = [encode(clip, prompt, guidance) for prompt in (*prompts, *kept_back)]
        return io.NodeOutput(
            PromptSet(tuple(encoded[: len(prompts)]), tuple(prompts), tuple(encoded[len(prompts) :]), tuple(kept_back))
        )


def text_file(name: str) -> Path:
    """A file of the input folder, never of another one."""
    from ..distillation import RecipeError

    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or path.suffix != ".txt":
        raise RecipeError(f"Expected the name of a .txt file below ComfyUI's input folder, got {name!r}.")
    return path


def encode(clip: Any, text: str, guidance: float) -> Any:
    """A CONDITIONING, as the nodes CLIPTextEncode and FluxGuidance make it."""
    import node_helpers

    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return node_helpers.conditioning_set_values(conditioning, {"guidance": guidance}) if guidance else conditioning


class PromptsFromConditionings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessPromptsFromConditionings",
            display_name="Prompts from Conditionings",
            category=CATEGORY,
            description="Prompts to train on, from CONDITIONINGs that were made otherwise: with ControlNet, with "
            "reference latents, by another encoder.",
            search_aliases=["collect conditionings", "prompt list"],
            inputs=[
                io.String.Input(
                    "texts",
                    multiline=True,
                    default="",
                    tooltip="The words of each, one a line, in order: for questions about the prompt, and for the "
                    "LoRA's metadata. Empty: not known.",
                ),
                Prompts.Input("prompts", optional=True, tooltip="Prompts to add these to."),
                io.Autogrow.Input(
                    "conditionings",
                    template=io.Autogrow.TemplatePrefix(
                        io.Conditioning.Input("conditioning", tooltip="One training prompt; a new socket appears."),
                        prefix="conditioning",
                        min=0,
                        max=MAX_CONDITIONINGS,
                    ),
                    tooltip="One socket a prompt. Empty ones are left out.",
                ),
            ],
            outputs=[Prompts.Output(display_name="prompts", tooltip="For Distill LoRA.")],
        )

    @classmethod
    def execute(
        cls, texts: str = "", prompts: PromptSet | None = None, conditionings: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        from ..distillation import RecipeError

        given = [c for c in (conditionings or {}).values() if c is not None]
        words = [line.strip() for line in texts.splitlines() if line.strip()]
        if not given:
            raise RecipeError(
                "No CONDITIONING is connected: connect at least one, and see that its node is not muted or bypassed."
            )
        if words and len(words) != len(given):
            raise RecipeError(
                f"Expected one line of texts for each of {len(given)} CONDITIONINGs, got {len(words)} lines. "
                "Write as many, or none."
            )
        return io.NodeOutput(PromptSet(tuple(given), tuple(words) or None).after(prompts))


NODES = [TrainingPrompts, PromptsFromConditionings]
