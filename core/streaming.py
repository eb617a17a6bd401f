"""A network whose frozen weights pass through the device, block by block, forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .pinning import PinnedMemory
from .residency import Visit, visiting_tensors, weights_of

Offload = bool | Literal["blocks"]  # weights wait in main memory until the whole model works, or each of its blocks
LARGE = 0.02  # of a network's weights: a part of its own, though it is in no row of blocks


class Stream:
    """A network of which only the block that works is on the device, and the next one on its way there.

    A block comes when it is called, and when its gradient is due; frozen weights need no way back. From the second
    pass on the block that followed last time is fetched ahead. Without gradient checkpointing the numbers are the
    same, but PyTorch's graph keeps most of the weights on the device.

    Args:
        network: its blocks come and go; all else that is frozen visits the device as long as `running` is entered.
        device: that they visit.
        blocks: parts of the network that are called; None are its rows of blocks and other large parts, see
            `blocks_of`.

    Attributes:
        blocks: those parts.
    """

    def __init__(self, network: nn.Module, device: torch.device, blocks: Sequence[nn.Module] | None = None) -> None:
        self.blocks = blocks_of(network) if blocks is None else list(blocks)
        streamed = {id(t) for block in self.blocks for t in weights_of(block)}
        self._rest = [t for t in weights_of(network) if id(t) not in streamed]
        self._device = device
        self._pinned = PinnedMemory(t for block in self.blocks for t in weights_of(block))
        self._visits: dict[nn.Module, Visit] = {}  # of the block that works, and of the next
        self._place: tuple[nn.Module, bool] | None = None  # the block that works, and whether it does so backwards
        self._next: dict[tuple[nn.Module, bool], tuple[nn.Module, bool]] = {}  # what followed a place last time
        self._depth = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """While entered, the network can work; afterwards its frozen weights are where they were."""
        with ExitStack() as stack:
            if self._depth == 0:
                self._pinned.pin(self._device)
                stack.enter_context(visiting_tensors(self._rest, self._device))
                for block in self.blocks:
                    stack.enter_context(self._called_first(block))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._place = None
                    self._keep_only()

    @contextmanager
    def _called_first(self, block: nn.Module) -> Iterator[None]:
        """While entered, the block comes when it is called. (A hook would miss what others note of its output.)"""
        before, forward = block.__dict__.get("forward"), block.forward

        @wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            recomputed = self._place == (block, True)
            self._come(block, backwards=recomputed)
            return self._gated(block, forward(*args, **kwargs))

        block.forward = call
        try:
            yield
        finally:
            del block.forward
            if before is not None:
                block.forward = before

    def _come(self, block: nn.Module, backwards: bool) -> None:
        place = (block, backwards)
        if self._depth == 0 or place == self._place:
            return
        if self._place is not None:
            self._next[self._place] = place
        if self._place is None or self._place[0] is not block:
            self._keep_only(block)
            self._visit(block).settle()
        self._place = place
        following = self._next.get(place, place)[0]
        self._keep_only(block, following)
        self._visit(following).fetch()

    def _visit(self, block: nn.Module) -> Visit:
        if block not in self._visits:
            self._visits[block] = Visit.kind(weights_of(block), self._device)
        return self._visits[block]

    def _keep_only(self, *blocks: nn.Module) -> None:
        for block in [block for block in self._visits if block not in blocks]:
            self._visits.pop(block).leave()

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
        return tuple(tensor.clone() for tensor in tensors)  # some models write into what a block has returned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.stream._come(ctx.block, backwards=True)
        return (None, None, *grads)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The rows of blocks that a transformer, UNet or vision-language model is made of, and what else is large.

    A part whose weights another one has, too (an embedding that is also the head), is no block.
    """
    owners = Counter(id(t) for part in network.modules() for t in part._parameters.values() if t is not None)
    found = _blocks_in(network, LARGE * sum(t.numel() for t in weights_of(network)))
    return [block for block in found if all(owners[id(t)] == 1 for t in block.parameters())]


def _blocks_in(module: nn.Module, large: float) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from _called(child)
        elif any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _blocks_in(child, large)
        elif sum(t.numel() for t in weights_of(child)) >= large:
            yield child


def _called(row: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The parts of a row: of rows within it theirs, since some networks call these one by one."""
    for part in row:
        if isinstance(part, nn.ModuleList | nn.Sequential):
            yield from _called(part)
        elif weights_of(part):
            yield part


def check_offload(offload: object, error: type[Exception]) -> None:
    """Raises `error` unless it is True, False or "blocks"."""
    if not isinstance(offload, bool) and offload != "blocks":
        raise error(f"Expected offload as True, False or 'blocks', got {offload!r}.")
