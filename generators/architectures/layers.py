"""The layers of a network that a LoRA may change, by their names in ComfyUI and in diffusers.

ComfyUI keeps the names of a model's authors ("native"). Where these stack several layers into one, diffusers splits it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Host = Literal["comfyui", "diffusers"]
Split = tuple[
    str, tuple[str, ...]
]  # a native layer, and diffusers' layers in the order in which it stacks their outputs


@dataclass(frozen=True)
class Block:
    """A kind of block; "{}" in its two names stands for its number."""

    comfyui: str
    diffusers: str
    layers: Mapping[str, tuple[str, ...]]  # native -> diffusers, without the block's name

    def name(self, host: Host) -> str:
        return self.comfyui if host == "comfyui" else self.diffusers


def same_names(*layers: str) -> dict[str, tuple[str, ...]]:
    """Layers that both hosts call alike."""
    return {layer: (layer,) for layer in layers}


def splits(blocks: Iterable[Block], names: Iterable[str], host: Host) -> Iterator[Split]:
    """Every known layer whose blocks are among those of `names`, the names of a network's modules in one host."""
    names = list(names)
    for block in blocks:
        for number in _numbers(block.name(host), names):
            native, ours = block.comfyui.replace("{}", number), block.diffusers.replace("{}", number)
            for layer, parts in block.layers.items():
                yield f"{native}.{layer}", tuple(f"{ours}.{part}" for part in parts)


def _numbers(name: str, modules: Collection[str]) -> list[str]:
    """The numbers of a kind of block in a network, rising; one empty "number" for a block that has none."""
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + r"\..*")
    found = {match.groups() for module in modules if (match := pattern.fullmatch(module))}
    return [groups[0] if groups else "" for groups in sorted(found, key=lambda g: int(g[0]) if g else 0)]
