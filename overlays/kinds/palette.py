"""Which colours the picture shall have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...core.errors import OverlayError
from ..layer import register
from ..parameters import check_fraction, parse_color
from ..stack import Overlay


@register
@dataclass(frozen=True)
class PaletteStrip:
    """Swatches of equal width in a strip at the bottom: "these are the colours" (paper, section 4.2)."""

    kind: ClassVar[str] = "palette"
    colors: tuple[str, ...] = field(metadata={"help": "Colours of the swatches, from left to right."})
    height: float = field(default=0.15, metadata={"help": "Height of the strip, fraction of the image's height."})

    def __post_init__(self) -> None:
        if isinstance(self.colors, str) or not isinstance(self.colors, Sequence) or len(self.colors) == 0:
            raise OverlayError(f"Expected a list of at least one colour for the palette, got {self.colors!r}.")
        object.__setattr__(self, "colors", tuple(self.colors))
        for color in self.colors:
            parse_color(color)
        check_fraction("height", self.height, 0.001)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; the strip is opaque and at least one pixel high."""
        rows = max(1, round(self.height * height))
        swatches = torch.tensor([parse_color(c) for c in self.colors])  # [K, 3]
        column = torch.arange(width) * len(swatches) // width  # [W], index of the swatch
        rgba = torch.zeros(4, height, width)
        rgba[:3, height - rows :] = swatches[column].T[:, None]
        rgba[3, height - rows :] = 1
        return rgba


def palette(colors: Sequence[str], height: float = 0.15) -> Overlay:
    """A strip of colour swatches at the bottom."""
    return Overlay((PaletteStrip(colors, height),))  # type: ignore[arg-type]  # it makes a tuple of any sequence
