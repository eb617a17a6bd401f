"""Which layers of a network a LoRA changes: a choice that means the same in every architecture and host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ..core.errors import GeneratorError
from ..core.protocols import ATTENTION, ATTENTION_AND_FEED_FORWARD, FIRST_HALF, LAST_HALF, LORA_TARGETS

Kind = Literal["attention", "feed-forward", "other"]

_ATTENTION = re.compile(r"attn|attention|qkv|\bto_[qkv]\b|\blinear1\b")  # linear1: of Flux-like single blocks
_FEED_FORWARD = re.compile(r"mlp|\bff|feed_?forward|\blinear2\b|\bproj_out\b|conv_(inverted|depth|point)")
_BLOCK = re.compile(r".*?\btransformer_blocks\.\d+|.*?\.\d+")  # a UNet's stages hold several transformer blocks
_OTHER = re.compile(r"norm|mod\b|_mod|modulation|emb|adaln", re.IGNORECASE)


def kind(names: Iterable[str]) -> Kind:
    """What a layer of a block does, read off its names, of which one is enough."""
    names = list(names)
    if any(_OTHER.search(name) for name in names):
        return "other"
    if any(_ATTENTION.search(name) for name in names):
        return "attention"
    return "feed-forward" if any(_FEED_FORWARD.search(name) for name in names) else "other"


def chosen(layers: Sequence[tuple[str, ...]], targets: str) -> list[bool]:
    """Whether each layer, given by all its names, is one of the targets.

    Args:
        layers: of a network's blocks, in the order in which the network runs them.
        targets: one of `LORA_TARGETS`, or a regular expression that one of a layer's names must match as a whole; with
            `FIRST_HALF` or `LAST_HALF` behind it, only in that half of the blocks; of an odd number the last is larger.

    Raises:
        GeneratorError: the expression is none, or no layer is chosen.
    """
    whole = targets.removesuffix(FIRST_HALF).removesuffix(LAST_HALF)
    if whole in LORA_TARGETS:
        wanted = {ATTENTION: ("attention",), ATTENTION_AND_FEED_FORWARD: ("attention", "feed-forward")}.get(whole)
        found = [wanted is None or kind(names) in wanted for names in layers]
    else:
        pattern = _compiled(whole)
        found = [any(pattern.fullmatch(name) for name in names) for names in layers]
    if whole != targets:
        half = _half(layers, first=targets.endswith(FIRST_HALF))
        found = [take and _block(names) in half for names, take in zip(layers, found, strict=True)]
    if not any(found):
        raise GeneratorError(
            f"Expected LoRA targets that choose some layer: one of {', '.join(map(repr, LORA_TARGETS))}, or a regular "
            f"expression for whole layer names such as {layers[0][0] if layers else 'blocks.0.attn.qkv'}. Got "
            f"{targets!r}."
        )
    return found


def _half(layers: Sequence[tuple[str, ...]], first: bool) -> set[str]:
    """The names of the blocks."""
    blocks = list(dict.fromkeys(_block(names) for names in layers))
    middle = len(blocks) // 2
    return {*(blocks[:middle] if first else blocks[middle:])}


def _block(names: Sequence[str]) -> str:
    found = _BLOCK.match(names[0])
    return found.group() if found else names[0]


def _compiled(targets: str) -> re.Pattern[str]:
    try:
        return re.compile(targets)
    except re.error as error:
        raise GeneratorError(f"Expected a regular expression for layer names, got {targets!r}: {error}.") from error
