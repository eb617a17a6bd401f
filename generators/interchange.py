"""LoRA files of known architectures, from one host's key names to another's, without the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from ..core.errors import LoraFileError
from .architectures import ARCHITECTURES, Architecture
from .architectures.layers import Block, Host, splits
from .lora import COMFYUI_PREFIX, KOHYA_PREFIX, Format, LoraLayer, fused, split, write

SUFFIXES = {".lora_A.weight": 0, ".lora_down.weight": 0, ".lora_B.weight": 1, ".lora_up.weight": 1, ".alpha": 2}
HOSTS: tuple[Host, ...] = get_args(Host)


@dataclass(frozen=True)
class LoraFile:
    """What a file of LoRA tensors turned out to be."""

    architecture: Architecture
    format: Format
    host: Host  # whose layer names `layers` have
    layers: Mapping[str, LoraLayer]


def recognised(state: Mapping[str, Tensor], name: str = "") -> LoraFile:
    """The architecture and the form of a LoRA's tensors, by their names.

    Where several architectures have these names, the one called `name` is taken, else the first one whose `ratios` say
    that it is meant, else one with no kind of block that the file leaves out: SD 3's are Flux's without single blocks.
    What is left (SD 1.x is part of SDXL's) converts alike.

    Raises:
        LoraFileError: keys are none of a plain LoRA, or no known architecture has these layers.
    """
    layers = _layers(state)
    found: list[LoraFile] = []
    for architecture in ARCHITECTURES:
        for format, prefix in _prefixes(architecture):
            if not all(name.startswith(prefix) for name in layers):
                continue
            bare = {name.removeprefix(prefix): layer for name, layer in layers.items()}
            for host in HOSTS if format == "kohya" else (format,):
                names = _kohya_names(architecture, bare, host) if format == "kohya" else _own(architecture, bare, host)
                if len(names) == len(bare):
                    full = {names[bare_name]: layer for bare_name, layer in bare.items()}
                    found.append(LoraFile(architecture, format, host, full))
    if named := [file for file in found if name in file.architecture.comfyui.values()]:
        return named[0]
    if found:
        return next((file for file in found if _meant(file)), min(found, key=_left_out))
    known = ", ".join(architecture.label for architecture in ARCHITECTURES)
    raise LoraFileError(
        f"No known architecture ({known}) has the layers of this LoRA, such as {next(iter(layers))}. Text encoders' "
        "layers are not converted: take them out."
    )


def converted(state: Mapping[str, Tensor], format: Format, name: str = "") -> dict[str, Tensor]:
    """A LoRA's tensors under another host's names, of the same dtype, exact; `name` is its architecture's, if known.

    Raises:
        LoraFileError: the file is not recognised, or the other host has no name for a layer.
    """
    file = recognised(state, name)
    architecture = file.architecture
    host: Host = architecture.kohya if format == "kohya" else format
    layers = file.layers
    if host != file.host:
        rows = list(splits(architecture.blocks, layers, file.host))
        layers = fused(layers, rows) if host == "comfyui" else split(layers, rows)
    dtype = next(iter(file.layers.values())).down.dtype
    tensors = write(layers, format, architecture)
    return {name: tensor if name.endswith(".alpha") else tensor.to(dtype) for name, tensor in tensors.items()}


def _layers(state: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    rows: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state.items():
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix)), None)
        if suffix is None:
            raise LoraFileError(f"Expected a plain LoRA (A, B and alpha of each layer), got the key {key}.")
        rows.setdefault(key.removesuffix(suffix), {})[SUFFIXES[suffix]] = tensor
    if not rows:
        raise LoraFileError("Expected a LoRA, but the file holds no tensors.")
    if partial := [name for name, row in rows.items() if not {0, 1} <= row.keys()]:
        raise LoraFileError(f"Expected A and B of each layer, but one is missing of {', '.join(partial[:3])}.")
    return {n: LoraLayer(r[0], r[1], float(r[2]) if 2 in r else float(len(r[0]))) for n, r in rows.items()}


def _meant(file: LoraFile) -> bool:
    """Whether the file has layers by whose shapes its architecture is told from others of the same names."""
    rows = [
        (inputs * len(layer.up), outputs * layer.down.shape[1])
        for name, layer in file.layers.items()
        for end, (inputs, outputs) in file.architecture.ratios.items()
        if name.endswith(end)
    ]
    return bool(rows) and all(have == wanted for have, wanted in rows)


def _left_out(file: LoraFile) -> int:
    """How many kinds of blocks of its architecture have no layer in the file."""
    names = [block.name(file.host).split("{}")[0] for block in file.architecture.blocks]
    return sum(not any(layer.startswith(name) for layer in file.layers) for name in names)


def _prefixes(architecture: Architecture) -> Iterator[tuple[Format, str]]:
    yield "diffusers", f"{architecture.network}."
    yield "comfyui", COMFYUI_PREFIX
    yield "kohya", KOHYA_PREFIX


def _own(architecture: Architecture, layers: Mapping[str, LoraLayer], host: Host) -> dict[str, str]:
    """The layers that an architecture has, by the names that they have already."""
    known = {
        name for native, parts in splits(architecture.blocks, layers, host)
        for name in ((native,) if host == "comfyui" else parts)
    }  # fmt: skip
    return {name: name for name in layers if name in known}


def _kohya_names(architecture: Architecture, layers: Mapping[str, LoraLayer], host: Host) -> dict[str, str]:
    """The layers that an architecture has, from names whose dots have become underscores."""
    forms = [form for block in architecture.blocks for form in _forms(block, host)]
    found: dict[str, str] = {}
    for name in layers:
        for pattern, full in forms:
            if match := pattern.fullmatch(name):
                found[name] = full.replace("{}", match[1]) if match.groups() else full
                break
    return found


def _forms(block: Block, host: Host) -> Iterator[tuple[re.Pattern[str], str]]:
    """Every layer of a block as a pattern of its flattened name, and its full name with "{}" for the number."""
    for native, parts in block.layers.items():
        for layer in (native,) if host == "comfyui" else parts:
            full = f"{block.name(host)}.{layer}"
            yield re.compile(re.escape(full.replace(".", "_")).replace(r"\{\}", r"(\d+)")), full


def architecture_of(metadata: Mapping[str, str]) -> str:
    """The architecture's name as a LoRA's metadata says it, empty where they do not."""
    return metadata.get("modelspec.architecture", "").removesuffix("/lora")
