"""Which files of a model folder are the model's, as transformers and diffusers read it."""

from __future__ import annotations

import json
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from .errors import DualProcessError

INDEX = "*.safetensors.index.json"
OTHER_FORMATS = ("consolidated*",)  # Mistral's own: the same weights again, which transformers does not read


def is_other_format(name: str) -> bool:
    """Whether a file of this name (without folders) is for programs other than transformers."""
    return any(fnmatch(name, pattern) for pattern in OTHER_FORMATS)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, by name."""
    return [file for file in sorted(folder.glob("*.safetensors")) if not is_other_format(file.name)]


def check_shards(folder: Path, error: type[DualProcessError]) -> None:
    """Raises `error` if an index of safetensors files names others, which transformers and diffusers would open."""
    named: set[str] = set()
    for index in (*folder.glob(INDEX), *folder.glob(f"*/{INDEX}")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # no index at all: refused as it loads
            named |= {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    if others := sorted(name for name in named if not name.endswith(".safetensors")):
        raise error(
            f"Expected weights as *.safetensors in {folder}, but an index there names {others[0]}. Pickle can run "
            "code, so it is not opened: download the model's safetensors files and their index."
        )
