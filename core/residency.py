"""Weights that visit a device only while they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def visiting_tensors(tensors: Iterable[Tensor], device: torch.device) -> Iterator[None]:
    """While entered, the frozen ones of the tensors lie on `device`; nothing moves that is there already.

    What is on the device is a copy that is dropped afterwards: the originals stay where they are, untouched.
    """
    away = []
    try:
        for tensor in tensors:
            if not tensor.requires_grad and tensor.device != device:
                away.append((tensor, tensor.data))
                tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, original in away:
            tensor.data = original


def visiting(modules: Iterable[nn.Module], device: torch.device) -> AbstractContextManager[None]:
    """While entered, everything frozen in the modules lies on `device`, as by `visiting_tensors`.

    Make a backward pass through the modules inside, too. Trainable parameters are left alone.
    """
    return visiting_tensors(chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules), device)


class Turns:
    """Parts of a model that visit a device one at a time: what works comes, forward and backward.

    Args:
        parts: how each part, by its name, visits the device: a call that gives a context.
    """

    def __init__(self, parts: Mapping[str, Callable[[], AbstractContextManager[None]]]) -> None:
        self._parts = parts
        self._visit = ExitStack()
        self._here = ""
        self.entered = False

    @contextmanager
    def taking(self) -> Iterator[None]:
        """While entered, parts come as they are called; afterwards all are away."""
        self.entered = True
        try:
            yield
        finally:
            self.entered, self._here = False, ""
            self._visit.close()

    def come(self, part: str) -> None:
        """From here on this part is on the device, and no other. Does nothing unless `taking` is entered."""
        if self.entered and part != self._here:
            self._visit.close()
            self._here = ""  # until all of it has come
            self._visit.enter_context(self._parts[part]())
            self._here = part

    def before_backward(self, part: str, tensor: Tensor) -> Tensor:
        """The tensor; in the backward pass, `part` comes before the gradient goes on to what the tensor was made of."""
        return _ComeBack.apply(tensor, self, part)  # type: ignore[return-value]


class _ComeBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, turns: Turns, part: str) -> Tensor:
        ctx.turns, ctx.part = turns, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.turns.come(ctx.part)
        return grads[0], None, None
