"""Which files of a model folder are the model's, as transformers reads it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

OTHER_FORMATS = ("consolidated*",)  # Mistral's own: the same weights again, which transformers does not read


def is_other_format(name: str) -> bool:
    """Whether a file of this name (without folders) is for programs other than transformers."""
    return any(fnmatch(name, pattern) for pattern in OTHER_FORMATS)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, by name."""
    return [file for file in sorted(folder.glob("*.safetensors")) if not is_other_format(file.name)]
