"""A LoRA with a slider as two files that any loader takes: the constant part at strength 1, the other at its value.

At the value t, from −1 to 1, a layer gains constant + t · slider.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import LoraFileError
from ..core.fingerprint import weights_sha256
from ..core.protocols import RangedOverlay
from ..core.tensor_file import read_tensors, write_tensors
from .recipe import Recipe

KEY = "dual_process.slider"
CONSTANT, COUNTED = "constant", "slider"  # the parts


@dataclass(frozen=True)
class SliderLora:
    """Both parts of a LoRA with a slider.

    Attributes:
        constant, slider: tensors of the files.
        overlays: plain data of what the questions drew, from one end of the slider to the other.
    """

    constant: Mapping[str, Tensor]
    slider: Mapping[str, Tensor]
    overlays: tuple[Any, ...]

    @classmethod
    def of(
        cls, constant: Mapping[str, Tensor], slider: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> SliderLora:
        """The parts with what a run's metadata say of the range."""
        return cls(constant, slider, tuple(json.loads(metadata[KEY])["overlays"]))


def slider_path(path: str | Path) -> Path:
    """Where the part that a slider counts lies, beside the constant one: horizon.slider.safetensors."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{COUNTED}{path.suffix}")


def follows_slider(recipe: Recipe) -> bool:
    return any(question.follows_slider for question in recipe.questions)


def slider_metadata(recipe: Recipe) -> dict[str, str]:
    """What both files say of the range; nothing where no slider is followed."""
    ranges = [q.overlay for q in recipe.questions if isinstance(q.overlay, RangedOverlay)]
    if not ranges:
        return {}
    ends = dict.fromkeys(overlay.describe(end) for overlay in ranges for end in (-1.0, 1.0))
    return {KEY: json.dumps({"overlays": [overlay.to_dict() for overlay in ranges], "ends": [*ends]})}


def write_slider(
    path: str | Path, constant: Mapping[str, Tensor], slider: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Path:
    """Writes both parts, the constant one last, so that no reader finds it alone; its path.

    Raises:
        LoraFileError: a file cannot be written.
    """
    said = json.loads(metadata[KEY])
    said["pair"] = weights_sha256(sorted(constant.items()))  # by which both are known to belong together
    ends = f"From end to end: {', '.join(said['ends'])}."
    hints = {
        CONSTANT: f"At strength 1.0, beside the file {slider_path(path).name} at the strength of the value, -1 to 1.",
        COUNTED: f"Its strength is the value, -1 to 1, beside the file {Path(path).name} at strength 1.0.",
    }
    own = {
        part: {**metadata, KEY: json.dumps({**said, "part": part}), "modelspec.usage_hint": f"{hint} {ends}"}
        for part, hint in hints.items()
    }
    write_tensors(slider_path(path), slider, own[COUNTED])
    return write_tensors(path, constant, own[CONSTANT])


def read_slider(path: str | Path) -> SliderLora:
    """Reads both parts by the path of the constant one.

    Raises:
        LoraFileError: a file is missing or no part of a slider, or the two do not belong together.
    """
    constant, metadata = read_tensors(path)
    said = _said(path, metadata, CONSTANT)
    beside = slider_path(path)
    if not beside.is_file():
        raise LoraFileError(
            f"{Path(path).name} is the constant part of a slider, but {beside.name} is not beside it. Copy both files."
        )
    slider, other = read_tensors(beside)
    if _said(beside, other, COUNTED)["pair"] != said["pair"]:
        raise LoraFileError(
            f"{beside.name} belongs to another constant part than {Path(path).name}. Copy both files of one training."
        )
    return SliderLora(constant, slider, tuple(said["overlays"]))


def _said(path: str | Path, metadata: Mapping[str, str], part: str) -> dict[str, Any]:
    try:
        said = json.loads(metadata[KEY])
        found = said["part"]
    except (KeyError, TypeError, ValueError) as error:
        raise LoraFileError(
            f"{Path(path).name} is no LoRA with a slider. Train one with a range between two overlays."
        ) from error
    if found != part:
        raise LoraFileError(f"{Path(path).name} is the {found} part of a slider, where its {part} part is wanted.")
    return said
