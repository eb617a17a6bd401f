"""An overlay is an ordered stack of layers: built from plain data, composited differentiably, written back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..core.errors import OverlayError
from .drawn import DrawnLayers
from .layers import HorizonLine, ImageOverlay, Layer, PaletteStrip, decode_png, encode_png

KINDS: dict[str, type[Layer]] = {layer.kind: layer for layer in (HorizonLine, PaletteStrip, ImageOverlay)}
_DRAWN = DrawnLayers(most_bytes=256 << 20)  # 85 pictures of 896 × 896


@dataclass(frozen=True)
class Overlay:
    """Layers in drawing order, the first one lowest."""

    layers: tuple[Layer, ...]

    def __add__(self, other: Overlay) -> Overlay:
        """This overlay with another drawn on top of it."""
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

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data that `build` takes back: one mapping a layer, pictures as base64 PNG."""
        return [{"kind": layer.kind, **_plain(layer)} for layer in self.layers]


def composite(images: Tensor, rgba: Tensor) -> Tensor:
    """Porter and Duff's "over" (1984) of one straight-alpha RGBA [4, H, W] on opaque images [B, 3, H, W]."""
    rgba = rgba.to(images.device, images.dtype)
    return torch.lerp(images, rgba[:3].expand_as(images), rgba[3:].expand_as(images))


def _plain(layer: Layer) -> dict[str, Any]:
    values = {f.name: getattr(layer, f.name) for f in fields(layer)}
    if isinstance(layer, ImageOverlay):
        values["png"] = encode_png(layer.png)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def build(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Overlay:
    """Builds an overlay from plain data: one layer's mapping or a list of them, each with `kind` and its parameters.

    Raises:
        OverlayError: an unknown kind, a missing, unknown or wrong parameter.
    """
    rows = [data] if isinstance(data, Mapping) else data
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not all(isinstance(r, Mapping) for r in rows):
        raise OverlayError(f"Expected an overlay as a mapping or a list of mappings, got {data!r}.")
    if not rows:
        raise OverlayError("Expected at least one overlay layer, got an empty list.")
    return Overlay(tuple(_build_layer(dict(row)) for row in rows))


def _build_layer(row: dict[str, Any]) -> Layer:
    kind = row.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise OverlayError(f"Expected an overlay kind out of {sorted(KINDS)}, got {kind!r}.")
    layer = KINDS[kind]
    names = [f.name for f in fields(layer)]
    if unknown := sorted(set(row) - set(names)):
        raise OverlayError(f"The overlay {kind!r} has no parameter {unknown}; it knows {names}.")
    if "png" in row:
        row["png"] = decode_png(row["png"])
    try:
        return layer(**row)
    except TypeError as error:
        raise OverlayError(f"The overlay {kind!r} needs other parameters: {error}.") from error


def horizon(position: float, thickness: float = 0.02, color: str = "#ff0000") -> Overlay:
    """A horizon line at a height (fraction from the top)."""
    return Overlay((HorizonLine(position, thickness, color),))


def palette(colors: Sequence[str], height: float = 0.15) -> Overlay:
    """A strip of colour swatches at the bottom."""
    return Overlay((PaletteStrip(colors, height),))  # type: ignore[arg-type]  # it makes a tuple of any sequence
