"""Shapes as coverage, how much of each pixel lies within, and a canvas that paints them. Antialiased by arithmetic.

Lengths and places are in pixels, from the upper left corner.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .parameters import parse_color


def interval(length: int, start: Tensor | float, end: Tensor | float) -> Tensor:
    """How much of each of `length` pixels [start, end] covers, [length, *S] in [0, 1].

    S is the shape of `start` and `end`, none for numbers.
    """
    start, end = torch.as_tensor(start, dtype=torch.float32), torch.as_tensor(end, dtype=torch.float32)
    edge = torch.arange(length, dtype=torch.float32).reshape(-1, *[1] * start.ndim)
    return (torch.minimum(edge + 1, end) - torch.maximum(edge, start)).clamp(0, 1)


def rectangle(height: int, width: int, left: float, top: float, right: float, bottom: float) -> Tensor:
    """[H, W], exact; nothing where an end lies before its start."""
    return interval(height, top, bottom)[:, None] * interval(width, left, right)


def frame(height: int, width: int, left: float, top: float, right: float, bottom: float, thickness: float) -> Tensor:
    """The outline of a rectangle, within it, [H, W]."""
    inner = (left + thickness, top + thickness, right - thickness, bottom - thickness)
    return rectangle(height, width, left, top, right, bottom) - rectangle(height, width, *inner)


def disc(height: int, width: int, x: float, y: float, radius: float) -> Tensor:
    """[H, W]."""
    return segment(height, width, x, y, x, y, 2 * radius)


def segment(height: int, width: int, x1: float, y1: float, x2: float, y2: float, thickness: float) -> Tensor:
    """A straight stroke with round ends, [H, W]."""
    x, y = torch.arange(width) + 0.5 - x1, (torch.arange(height) + 0.5 - y1)[:, None]
    dx, dy = x2 - x1, y2 - y1
    along = ((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
    return (thickness / 2 + 0.5 - torch.hypot(x - along * dx, y - along * dy)).clamp(0, 1)


class Canvas:
    """A see-through picture that shapes are painted on, one over the other."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._color = torch.zeros(3, height, width)  # premultiplied
        self._alpha = torch.zeros(height, width)

    @property
    def shorter(self) -> int:
        """The shorter side, pixels."""
        return min(self.height, self.width)

    def paint(self, coverage: Tensor, color: str) -> None:
        """Paints what `coverage` [H, W] in [0, 1] says."""
        self._color = torch.lerp(self._color, torch.tensor(parse_color(color))[:, None, None], coverage)
        self._alpha = torch.lerp(self._alpha, torch.ones(()), coverage)

    def rgba(self) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]."""
        return torch.cat([self._color / self._alpha.clamp(min=1e-6), self._alpha[None]]).clamp(0, 1)
