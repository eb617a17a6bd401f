"""torch.compile for the blocks that a network repeats, with a way back where it fails."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

log = logging.getLogger(__name__)


def compile_blocks(network: nn.Module) -> None:
    """Compiles the blocks that diffusers says a network repeats, those of one class once for all of them.

    Only passes with gradient are compiled: they are most of a step's time, and their shapes stay the same. Roll-outs,
    pictures of other sizes and the base model would each take a compilation of their own. Where compiling fails, the
    block is computed without, and from then on all are; one line in the log says so. Layers that are added to a
    block later, such as a LoRA's, are compiled with it.
    """
    names = getattr(network, "_repeated_blocks", None) or ()
    blocks = [module for module in network.modules() if type(module).__name__ in names]
    if not blocks:
        log.warning("%s names no blocks to compile: it runs as it is.", type(network).__name__)
    attempt = _Attempt()
    compiled = {kind: torch.compile(kind.forward, dynamic=False) for kind in {type(block) for block in blocks}}
    for block in blocks:
        block.forward = partial(attempt.call, block, compiled[type(block)])


class _Attempt:
    """Calls compiled blocks until one fails."""

    def __init__(self) -> None:
        self._failed = False

    def call(self, block: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not self._failed:
            try:
                return compiled(block, *args, **kwargs)
            except TorchDynamoException as error:  # an error of the block's own comes again below
                self._failed = True
                reason = " ".join(str(error).split("\n\n")[0].split())
                log.warning("torch.compile failed: %s The network runs without.", reason)
        return type(block).forward(block, *args, **kwargs)
