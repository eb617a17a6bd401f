# pyright: reportMissingImports=false
"""A MODEL's network and the decoders of its VAEs, which this pack brings to the device in place of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from ...comfy_host import borrowed
from ...comfy_host.borrowed import Borrowed
from ...core.residency import Turns, visiting_tensors, weights_of
from ...core.streaming import Stream

NETWORK, DECODER = "network", "decoder"
ENCODERS = ("encoder", "quant_conv", "taesd_encoder")  # what of ComfyUI's VAEs takes no part in decoding


def why_not(model: Any, *vaes: Any) -> str:
    """Why this pack cannot move the weights of a MODEL and its VAEs; empty where it can."""
    for name, patcher in (("MODEL", model), *(("VAE", vae.patcher) for vae in vaes)):
        if reason := borrowed.why_not(patcher):
            return f"the weights of the {name} {reason}"
    return ""


class Visits:
    """How network and decoders come to the device and leave it, forward and backward.

    Args:
        model: ModelPatcher, for which `why_not` has no reason.
        vaes: VAEs, for which it has none either; their decoders come together.
        by_block: whether only the block of the network that works is to be there.

    Attributes:
        by_block: as given.
        model: a ModelPatcher for the same weights, which ComfyUI never streams.
        turns: of NETWORK and DECODER.
        blocks: of the network that come one by one, once `in_force` has been entered; None where it comes as a whole.
    """

    def __init__(self, model: Any, vaes: Sequence[Any], by_block: bool) -> None:
        self._model, self._vaes, self.by_block = Borrowed(model), [Borrowed(vae.patcher) for vae in vaes], by_block
        self.model = self._model.patcher
        self._devices = {NETWORK: model.load_device, DECODER: vaes[0].device}
        self._visits: dict[str, Callable[[], AbstractContextManager[None]]] = {}
        self.turns = Turns({part: partial(self._visit, part) for part in (NETWORK, DECODER)})
        self.blocks: list[nn.Module] | None = None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While entered, the modules hold frozen plain tensors in main memory, which visits bring to the device."""
        with ExitStack() as stack:
            new = [stack.enter_context(model.in_force()) for model in (self._model, *self._vaes)]
            if any(new):
                self._prepare()
            yield

    def _prepare(self) -> None:
        model = self._model.model
        if self.by_block:
            stream = Stream(model, self._devices[NETWORK])
            self.blocks, self._visits[NETWORK] = stream.blocks, stream.running
        else:
            self._visits[NETWORK] = partial(visiting_tensors, weights_of(model), self._devices[NETWORK])
        parts = [part for vae in self._vaes for part in vae.model.named_children()]
        encoding = {id(t) for name, part in parts if name in ENCODERS for t in weights_of(part)}
        decoding = [t for vae in self._vaes for t in weights_of(vae.model) if id(t) not in encoding]
        self._visits[DECODER] = partial(visiting_tensors, decoding, self._devices[DECODER])

    def _visit(self, part: str) -> AbstractContextManager[None]:
        return self._visits[part]()

    @contextmanager
    def both(self) -> Iterator[None]:
        """While entered, network (or the block of it that works) and decoder are on the device."""
        with ExitStack() as stack:
            for part in (NETWORK, DECODER):
                stack.enter_context(self._visit(part))
            yield
