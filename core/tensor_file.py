"""Safetensors files, written atomically and read with clear errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import LoraFileError
from .replacing import replacing


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a safetensors file; no reader ever sees half of it.

    Raises:
        LoraFileError: the file cannot be written (disk full, no permission); an older file at `path` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            save_file(
                {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
                beside,
                metadata=dict(metadata),
            )
    except (OSError, SafetensorError) as error:
        raise LoraFileError(
            f"Could not write {path}: {error}. Free some space or choose another folder, then save again; "
            "what was trained is still in memory."
        ) from error
    return path


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        LoraFileError: the file is missing, truncated, or not safetensors (pickled files are never opened).
    """
    path = Path(path)
    if not path.is_file():
        raise LoraFileError(f"Expected a safetensors file at {path}, found none. Check the path.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if _is_pickled(head):
            raise LoraFileError(
                f"{path} is a pickled PyTorch file. Pickle can run code, so it is not opened: "
                "convert it to safetensors first."
            )
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise LoraFileError(
            f"{path} is not a whole safetensors file ({error}). It may be truncated: copy or download it again."
        ) from error


def _is_pickled(head: bytes) -> bool:
    """Whether a file's first nine bytes are those of torch.save, zipped or not, rather than of safetensors.

    Safetensors begins with the length of its JSON header, whose first byte may be any, then the header's "{".
    """
    return head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80")
