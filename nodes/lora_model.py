"""LORA_MODEL as this pack makes it: the tensors that core nodes expect, and where they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

DIFFUSERS, COMFYUI = "diffusers", "comfyui"


class TrainedLora(dict[str, Tensor]):
    """The LoRA under ComfyUI's native key names; core's LoraModelLoader and SaveLoRA take it as it is.

    Attributes:
        diffusers: the same LoRA under diffusers' names, None for architectures without them.
        metadata: how it was made, for the saved file.
        preview: labelled pictures before and after, an IMAGE of one, where some were made.
        view: what the node shows of the run, None where nothing does.
        slider: what a slider counts beside this one, the constant part; None where there is no slider.
    """

    preview: Tensor | None = None
    view: Any = None
    slider: TrainedLora | None = None

    def __init__(
        self, native: dict[str, Tensor], diffusers: dict[str, Tensor] | None, metadata: dict[str, str]
    ) -> None:
        super().__init__(native)
        self.diffusers = diffusers
        self.metadata = metadata

    @classmethod
    def of(cls, result: Any, workflow: dict[str, str], verdict: dict[str, Any] | None = None) -> TrainedLora:
        """The LoRA of a `DistillationResult`; `workflow` and `verdict` are added to its metadata."""
        metadata = {**result.metadata("Dual-process LoRA", verdict), **workflow}
        lora = cls(result.lora_state_dict(COMFYUI), in_diffusers_names(result), metadata)
        if result.follows_slider:
            native = result.lora_state_dict(COMFYUI, slider=True)
            lora.slider = cls(native, in_diffusers_names(result, slider=True), metadata)
        return lora

    def named(self, format: str) -> dict[str, Tensor]:
        """Tensors for a file, under the format's key names, or ComfyUI's where it has none."""
        tensors = self.diffusers if format == DIFFUSERS and self.diffusers is not None else self
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def in_diffusers_names(source: Any, slider: bool = False) -> dict[str, Tensor] | None:
    """The LoRA of a result, or of a generator; None where diffusers has no names for it."""
    from ..core.errors import GeneratorError, LoraFileError

    try:
        return source.lora_state_dict(DIFFUSERS, slider)
    except (GeneratorError, LoraFileError):  # a model, or a layer, that diffusers does not have
        return None


def save_lora(path: Path, lora: dict[str, Tensor], format: str, extra: dict[str, str] | None = None) -> Path:
    """Writes a LORA_MODEL atomically; a plain one, of core's training nodes, goes out as it is.

    Raises:
        LoraFileError: the file cannot be written.
    """
    from ..core.tensor_file import write_tensors
    from ..distillation.slider import write_slider

    ours = lora if isinstance(lora, TrainedLora) else TrainedLora(lora, None, {"format": "pt"})
    metadata = {**ours.metadata, **(extra or {}), "modelspec.title": path.stem}
    if ours.slider is not None:
        return write_slider(path, ours.named(format), ours.slider.named(format), metadata)
    return write_tensors(path, ours.named(format), metadata)


def free_path(folder: Path, stem: str) -> Path:
    """The next numbered file name, `<stem>_00001_.safetensors` or higher, that no file has."""
    numbered = re.compile(rf"{re.escape(stem)}_(\d+)_", re.IGNORECASE)  # some file systems know no case
    taken = [int(found[1]) for path in folder.glob("*") if (found := numbered.match(path.name))]
    number = max(taken, default=0) + 1
    return folder / f"{stem}_{number:05}_.safetensors"
