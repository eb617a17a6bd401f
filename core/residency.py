"""Weights that visit a device only while they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Visit:
    """Frozen tensors that come to a device together, and leave it together: all weights move by this class.

    What is on the device is a copy that is dropped afterwards: the originals stay where they are, untouched. On CUDA
    the copy runs beside the work that is queued already, and reuses memory that this work gives back.

    Args:
        tensors: trainable ones, and those that are on the device already, are left alone.
    """

    kind: ClassVar[type[Visit]]  # what `visit` makes

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self._tensors = [t for t in tensors if not t.requires_grad and t.device != device]
        self._device = device
        self._copies: list[Tensor] | None = None
        self._arrival: Any = None  # a torch.cuda.Event
        self._originals: list[Tensor] = []

    def fetch(self) -> None:
        """They begin to come; nothing waits for it."""
        if self._copies is not None:
            return
        self._copies = [torch.empty_like(t.data, device=self._device) for t in self._tensors]
        with ExitStack() as stack:
            if self._device.type == "cuda":
                beside = _copying(self._device)
                beside.wait_stream(torch.cuda.current_stream(self._device))  # whose memory the copies may reuse
                stack.enter_context(torch.cuda.stream(beside))
            for copy, tensor in zip(self._copies, self._tensors, strict=True):
                copy.copy_(tensor.data, non_blocking=True)
            if self._device.type == "cuda":
                self._arrival = torch.cuda.current_stream(self._device).record_event()

    def settle(self) -> None:
        """From here on they are on the device."""
        self.fetch()
        self._wait()
        self._originals = [t.data for t in self._tensors]
        for tensor, copy in zip(self._tensors, self._copies or [], strict=True):
            tensor.data = copy

    def leave(self) -> None:
        """They are where they were, whether they had settled or not."""
        self._wait()
        for tensor, original in zip(self._tensors, self._originals, strict=bool(self._originals)):
            tensor.data = original
        self._originals, self._copies = [], None

    def _wait(self) -> None:
        if self._arrival is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrival)
            self._arrival = None


Visit.kind = Visit


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def weights_of(module: nn.Module) -> list[Tensor]:
    """A module's parameters and buffers, each once; of one that consists of several tensors, these."""
    return [*dict.fromkeys(part for t in chain(module.parameters(), module.buffers()) for part in _parts(t))]


def _parts(tensor: Tensor) -> list[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While entered, everything frozen in the modules lies on `device`.

    Make a backward pass through the modules inside, too. Trainable parameters are left alone.
    """
    with visiting_tensors(chain.from_iterable(weights_of(module) for module in modules), device):
        yield


@contextmanager
def visiting_tensors(tensors: Iterable[Tensor], device: torch.device) -> Iterator[None]:
    """While entered, the frozen ones of the tensors lie on `device`."""
    visit = Visit.kind(tensors, device)
    try:
        visit.settle()
        yield
    finally:
        visit.leave()


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
