"""Weights that visit a device only while they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While entered, everything frozen in the modules lies on `device`; nothing moves that is there already.

    What is on the device is a copy that is dropped afterwards: the originals stay where they are, untouched. Make a
    backward pass through the modules inside, too. Trainable parameters are left alone.
    """
    away = []
    try:
        for module in modules:
            for tensor in chain(module.parameters(), module.buffers()):
                if not tensor.requires_grad and tensor.device != device:
                    away.append((tensor, tensor.data))
                    tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, original in away:
            tensor.data = original
