"""An overlay is an ordered stack of layers: built from plain data, composited differentiably, written back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import OverlayError
from .drawn import DrawnLayers
from .layer import Layer, read_layer, write_layer

_DRAWN = DrawnLayers(most_bytes=256 << 20)  # 85 pictures of 896 × 896


@dataclass(frozen=True)
class Overlay:
    """Layers in drawing order, the first one lowest."""

    layers: tuple[Layer, ...]

    def __add__(self, other: Overlay) -> Overlay:
        """This overlay with another drawn on top of it."""
        if not isinstance(other, Overlay):
            return NotImplemented  # a range knows what to do
        return Overlay(self.layers + other.layers)

    def apply(self, images: Tensor) -> Tensor:
        """Composites the layers over images [B, 3, H, W] in [0, 1]; differentiable, the same size and range.

        Raises:
            OverlayError: `images` has another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise OverlayError(f"Expected images of shape [B, 3, H, W], got {list(images.shape)}.")
        height, width = images.shape[-2:]
        for layer in self.layers:
            images = composite(images, _DRAWN.get(layer, height, width))
        return images

    def questions(self) -> tuple[str, ...]:
        """Wordings of the questions that go with the layers, three for each; the wanted answer is Yes."""
        return tuple(text for layer in self.layers for text in layer.questions())

    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """Those of each layer by themselves; of layers that ask the same, once."""
        return tuple(dict.fromkeys(layer.questions() for layer in self.layers))

    def guards(self) -> tuple[str, ...]:
        """Questions to ask without the overlay, so that the instruction itself is not painted; the answer is Yes."""
        return tuple(dict.fromkeys(text for layer in self.layers for text in layer.guards()))

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data that `build_stack` takes back: one mapping a layer."""
        return [write_layer(layer) for layer in self.layers]


def composite(images: Tensor, rgba: Tensor) -> Tensor:
    """Porter and Duff's "over" (1984) of one straight-alpha RGBA [4, H, W] on opaque images [B, 3, H, W]."""
    rgba = rgba.to(images.device, images.dtype)
    return torch.lerp(images, rgba[:3].expand_as(images), rgba[3:].expand_as(images))


def build_stack(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Overlay:
    """An overlay from plain data without ranges; see `ranges.build`.

    Raises:
        OverlayError: an unknown kind, a missing, unknown or wrong parameter.
    """
    rows = [data] if isinstance(data, Mapping) else data
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not all(isinstance(r, Mapping) for r in rows):
        raise OverlayError(f"Expected an overlay as a mapping or a list of mappings, got {data!r}.")
    if not rows:
        raise OverlayError("Expected at least one overlay layer, got an empty list.")
    return Overlay(tuple(read_layer(row) for row in rows))
