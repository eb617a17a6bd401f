"""What a model takes on a device, in bytes, from its layers alone: its weights need not be loaded.

What a graph keeps of a layer is its input and its output, about: of the product itself, of norms, activation functions,
gates and attention. `KEPT` is the share that steps at full size have shown (benchmarks/full_size.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from .quantization import QuantizedLinear
from .residency import weights_of
from .streaming import blocks_of

BITS = {"8bit": 8.0, "fp8": 8.0, "4bit": 4.5}  # of a weight; NF4 has a scale of 32 bits for 64 of them
KEPT = 1.15
CAUSAL = 2.9  # times that, of the convolutions of video VAEs: padded copies, and norms of several operations

Positions = Callable[[str, nn.Module], int]  # of a layer: on how many tokens, patches or pixels of all samples it works
OF_TEXT = re.compile(r"txt|add_|context|attn2\.to_[kv]")  # a layer of a double block that sees the prompt's tokens only
OF_VECTORS = re.compile(r"mod\b|modulation|norm|adaln|time|guidance|pooled", re.IGNORECASE)  # layers that see no tokens


@dataclass(frozen=True)
class ModelSize:
    """Of one model that works on a device; bytes, of one step.

    Attributes:
        weights: all of them.
        ring: of weights what is there at once when blocks pass through the device: two that follow each other, and all
            that is in no block.
        passing: of weights and graph then, in the backward pass.
        kept: by the graph, nothing recomputed.
        inputs: by the graph where each block is computed again.
        block: of `kept`, what belongs to the largest block.
        work: beside all that while it is at work, such as weights widened from few bits.
        flops: of one forward pass, in products.
    """

    weights: int
    ring: int
    passing: int
    kept: int
    inputs: int
    block: int
    work: int
    flops: float


@dataclass(frozen=True)
class _Layer:
    name: str
    module: nn.Module
    parameters: int
    values: int  # input and output at one position
    width: int  # of its input


def size_up(network: nn.Module, positions: Positions, dtype: torch.dtype, quantization: str | None = None) -> ModelSize:
    """The size of a network whose layers work on so many positions.

    Args:
        network: on any device, "meta" included.
        positions: of each linear layer and convolution; 0 for those that see a vector, not tokens.
        dtype: of activations.
        quantization: what its linear layers would have: None (as they are), "8bit", "fp8" or "4bit".
    """
    names = {module: name for name, module in network.named_modules()}
    packed = _packed(network) if quantization else {}
    blocks = [_Block(_layers(part, names[part]), positions, packed) for part in blocks_of(network)]
    weights = [_bytes(part, packed, quantization) for part in blocks_of(network)]
    pairs = [sum(pair) for pair in zip(weights, [*weights[1:], 0], strict=True)]
    whole = _bytes(network, packed, quantization)
    rest, layers, size = whole - sum(weights), _layers(network), dtype.itemsize
    until = accumulate(block.input for block in blocks)  # the inputs of later blocks are gone when a block is due
    at_work = [(int(KEPT * b.kept) + b.widened + before) * size for b, before in zip(blocks, until, strict=True)]
    return ModelSize(
        weights=whole,
        ring=rest + max(pairs, default=0),
        passing=rest + max((p + w for p, w in zip(pairs, at_work, strict=True)), default=0),
        kept=int(KEPT * sum(block.kept for block in blocks)) * size,
        inputs=sum(block.input for block in blocks) * size,
        block=int(KEPT * max((block.kept for block in blocks), default=0)) * size,
        work=max((block.widened for block in blocks), default=0) * size,
        flops=sum(2.0 * layer.parameters * positions(layer.name, layer.module) for layer in layers)
        + sum(block.attention for block in blocks),
    )


def _layers(module: nn.Module, prefix: str = "") -> list[_Layer]:
    found = []
    for name, part in module.named_modules(prefix=prefix):
        layer: Any = part
        if hasattr(layer, "in_features") and hasattr(layer, "out_features"):
            sides, parameters = (layer.in_features, layer.out_features), layer.in_features * layer.out_features
        elif isinstance(layer, nn.modules.conv._ConvNd):
            sides, parameters = (layer.in_channels, layer.out_channels), layer.weight.numel()
        else:
            continue
        found.append(_Layer(name, layer, parameters, sum(sides), sides[0]))
    return found


class _Block:
    """Numbers in a block's input, in all that its graph keeps, in a weight of few bits that is widened to work.

    And the arithmetic of its attention.
    """

    def __init__(self, layers: Sequence[_Layer], positions: Positions, packed: Mapping[int, int]) -> None:
        counts = [positions(layer.name, layer.module) for layer in layers]
        seen: dict[int, int] = {}  # what the first layer sees, of each kind of token once
        for layer, count in zip(layers, counts, strict=True):
            seen.setdefault(count, layer.width * count)
        self.input = sum(seen.values())
        self.kept = sum(
            layer.values * count * (CAUSAL if isinstance(layer.module, nn.Conv3d) else 1)
            for layer, count in zip(layers, counts, strict=True)
        )
        few_bits = [layer for layer in layers if _has_few_bits(layer.module, packed)]
        self.widened = max((layer.parameters for layer in few_bits), default=0)
        attends = not any(isinstance(layer.module, nn.modules.conv._ConvNd) for layer in layers)
        self.attention = 4.0 * sum(seen) * self.input if attends else 0.0


def _has_few_bits(module: Any, packed: Mapping[int, int]) -> bool:
    return isinstance(module, QuantizedLinear) or id(module.weight) in packed


def _packed(network: nn.Module) -> dict[int, int]:
    """The weights that quantising packs, numbers by identity: of all linear layers but the head."""
    named = network.named_modules()
    weights = [p.weight for name, p in named if isinstance(p, nn.Linear) and not name.endswith("lm_head")]
    return {id(weight): weight.numel() for weight in weights}


def _bytes(module: nn.Module, packed: Mapping[int, int], quantization: str | None) -> int:
    bits = BITS.get(quantization or "", 0.0)
    return int(sum(t.numel() * bits / 8 if id(t) in packed else t.nbytes for t in weights_of(module)))


def token_positions(network: nn.Module, image: int, text: int) -> Positions:
    """Of a transformer that sees so many tokens of the picture and of the prompt, in all samples together.

    Where a block has layers of its own for the prompt, its others see the picture; elsewhere all see both.
    """
    doubles = {_row(layer.name) for layer in _layers(network) if OF_TEXT.search(layer.name)}

    def count(name: str, module: nn.Module) -> int:
        if OF_VECTORS.search(name):
            return 0
        if OF_TEXT.search(name):
            return text
        return image if _row(name) in doubles else image + text

    return count


def _row(name: str) -> str:
    """The block that a layer belongs to, such as "transformer_blocks.3"."""
    found = re.match(r".*?\.\d+", name)
    return found.group() if found else name


def counted_positions(run: Callable[..., Any], network: nn.Module, *inputs: Any) -> Positions:
    """Of a network whose layers work on different sizes: what a pass counts, with weights that take no memory.

    Args:
        run: called with the network and the inputs, all on the device "meta".
        network: on any device; nothing of it is changed.
    """
    counts: dict[nn.Module, int] = {}

    def note(module: Any, _: Any, output: Tensor) -> None:
        channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        counts[module] = counts.get(module, 0) + output.numel() // channels

    parts = [part for part in network.modules() if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [part.register_forward_hook(note) for part in parts]
    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weights = {f"network.{name}": torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(_Running(run, network), weights, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return lambda name, module: counts.get(module, 0)


class _Running(nn.Module):
    def __init__(self, run: Callable[..., Any], network: nn.Module) -> None:
        super().__init__()
        self.network, self._run = network, run

    def forward(self, *inputs: Any) -> Any:
        return self._run(self.network, *inputs)
