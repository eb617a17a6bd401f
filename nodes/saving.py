"""Saving a LoRA where LoraLoader looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from torch import Tensor

from .lora_model import COMFYUI, DIFFUSERS, TrainedLora, free_path, save_lora
from .refusals import refused
from .run_files import path_below, save_picture
from .types import CATEGORY


class SaveDistilledLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessSaveDistilledLoRA",
            display_name="Save Distilled LoRA",
            category=CATEGORY,
            description="Saves a LoRA into models/loras, where LoraLoader finds it (press R there). Its metadata says "
            "how it was made. An existing file is never overwritten.",
            search_aliases=["export lora", "save lora"],
            is_output_node=True,
            inputs=[
                io.LoraModel.Input(
                    "lora", optional=True, tooltip="A LoRA from Distill LoRA, or from core's own training node."
                ),
                io.String.Input(
                    "name",
                    default="dual_process/lora",
                    tooltip="File name below models/loras, without number and ending; folders with / are made.",
                ),
                io.Combo.Input(
                    "format",
                    options=[DIFFUSERS, COMFYUI],
                    default=DIFFUSERS,
                    advanced=True,
                    tooltip="diffusers: reads everywhere (models that diffusers does not have are saved as comfyui). "
                    "comfyui: native names, for LoraLoader with bypass.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="lora_name", tooltip="The file's name as LoraLoader lists it."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, name: str, format: str, lora: dict[str, Tensor] | None = None) -> io.NodeOutput:
        from ..distillation import LoraFileError

        if lora is None:
            raise LoraFileError(
                "There is no LoRA to save: connect Distill LoRA, and see that it is neither muted nor bypassed."
            )
        root = Path(folder_paths.get_folder_paths("loras")[0])
        target = lora_file(root, name)
        path = save_lora(free_path(target.parent, target.name), lora, format, workflow_metadata(cls.hidden))
        shown = path.relative_to(root).as_posix()
        if isinstance(lora, TrainedLora):
            if lora.preview is not None:
                save_picture(path.with_suffix(".png"), lora.preview)
            if lora.view is not None:
                lora.view.saved_as(shown)
        return io.NodeOutput(shown, ui={"text": (f"saved as {shown}",)})

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """What can be known before training is."""
        try:
            lora_file(Path(folder_paths.get_folder_paths("loras")[0]), name)
        except ValueError as error:
            return refused(cls, str(error))
        return True


def lora_file(root: Path, name: str) -> Path:
    """Where a LoRA called `name` goes; never outside `root`.

    Raises:
        LoraFileError: the name is empty, absolute, or leads out of the folder.
    """
    from ..distillation import LoraFileError

    return path_below(root, name.strip().removesuffix(".safetensors"), LoraFileError, "models/loras", "horizon")


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The graph that made something, as ComfyUI writes it into pictures; nothing under --disable-metadata."""
    found: dict[str, str] = {}
    if args.disable_metadata:
        return found
    if hidden is not None and hidden.prompt is not None:
        found["prompt"] = json.dumps(hidden.prompt)
    for key, value in ((hidden.extra_pnginfo if hidden is not None else None) or {}).items():
        found[key] = json.dumps(value)
    return found


NODES = [SaveDistilledLoRA]
