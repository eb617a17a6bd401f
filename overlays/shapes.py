"""Shapes as coverage: how much of each pixel lies within, in [0, 1]. Antialiased by arithmetic at every size."""

from __future__ import annotations

import torch
from torch import Tensor


def interval(length: int, start: float, end: float) -> Tensor:
    """How much of each of `length` pixels the interval [start, end] (in pixels) covers, [length] in [0, 1]."""
    edge = torch.arange(length, dtype=torch.float32)
    return ((edge + 1).clamp(max=end) - edge.clamp(min=start)).clamp(0, 1)
