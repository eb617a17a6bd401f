"""A network whose frozen weights pass through the device, block by block, forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .residency import visiting_tensors

Offload = bool | Literal["blocks"]  # weights wait in main memory until the whole model works, or each of its blocks
LARGE = 0.02  # of a network's weights: a part of its own, though it is in no row of blocks


class Stream:
    """A network of which only the block that works is on the device; frozen weights need no way back.

    A block comes when it is called, and when its gradient is due. Without gradient checkpointing the numbers are the
    same, but PyTorch's graph keeps most of the weights on the device.

    Args:
        network: its rows of blocks, and other large parts, come and go (see `blocks_of`); all else that is frozen
            visits the device as long as `running` is entered.
        device: that they visit.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._blocks = blocks_of(network)
        streamed = {id(t) for block in self._blocks for t in _weights(block)}
        self._rest = [t for t in _weights(network) if id(t) not in streamed]
        self._device = device
        self._visit = ExitStack()
        self._here: nn.Module | None = None
        self._depth = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """While entered, the network can work; afterwards its frozen weights are where they were."""
        with ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(visiting_tensors(self._rest, self._device))
                for block in self._blocks:
                    stack.enter_context(self._called_first(block))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._leave()

    @contextmanager
    def _called_first(self, block: nn.Module) -> Iterator[None]:
        """While entered, the block comes when it is called. (A hook would miss what others note of its output.)"""
        before, forward = block.__dict__.get("forward"), block.forward

        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._come(block)
            return self._gated(block, forward(*args, **kwargs))

        block.forward = call
        try:
            yield
        finally:
            del block.forward
            if before is not None:
                block.forward = before

    def _come(self, block: nn.Module) -> None:
        if self._depth and self._here is not block:
            self._leave()
            self._visit.enter_context(visiting_tensors(_weights(block), self._device))
            self._here = block

    def _leave(self) -> None:
        self._here = None
        self._visit.close()

    def _gated(self, block: nn.Module, output: Any) -> Any:
        """The output, which calls the block in the backward pass, once the gradient of all of it is known."""
        leaves, structure = tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not places:
            return output
        for place, tensor in zip(places, _Gate.apply(self, block, *(leaves[i] for i in places)), strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, structure)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Stream, block: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stream, ctx.block = stream, block
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.stream._come(ctx.block)
        return (None, None, *grads)


def _weights(module: nn.Module) -> list[Tensor]:
    return [*dict.fromkeys(chain(module.parameters(), module.buffers()))]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The rows of blocks that a transformer, UNet or vision-language model is made of, and what else is large.

    A part whose weights another one has, too (an embedding that is also the head), is no block.
    """
    owners = Counter(id(t) for part in network.modules() for t in part._parameters.values() if t is not None)
    found = _blocks_in(network, LARGE * sum(t.numel() for t in _weights(network)))
    return [block for block in found if all(owners[id(t)] == 1 for t in block.parameters())]


def _blocks_in(module: nn.Module, large: float) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _blocks_in(child, large)
        elif sum(t.numel() for t in _weights(child)) >= large:
            yield child


def check_offload(offload: object, error: type[Exception]) -> None:
    """Raises `error` unless it is True, False or "blocks"."""
    if not isinstance(offload, bool) and offload != "blocks":
        raise error(f"Expected offload as True, False or 'blocks', got {offload!r}.")
