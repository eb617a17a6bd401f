"""Which colours the picture shall have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.errors import OverlayError
from ..layer import register
from ..parameters import check_fraction, parse_color
from ..stack import Overlay

LOOK = 256  # pixels a side to which a picture is reduced before its colours are counted
ROUNDS = 10  # of k-means after the median cut
SIDES = {"bottom": "at the bottom", "top": "at the top", "left": "on the left", "right": "on the right"}


@register
@dataclass(frozen=True)
class PaletteStrip:
    """Swatches of equal size in a strip along a side: "these are the colours" (paper, section 4.2)."""

    kind: ClassVar[str] = "palette"
    colors: tuple[str, ...] = field(metadata={"help": "Colours of the swatches, from left to right."})
    height: float = field(default=0.15, metadata={"help": "Height of the strip, fraction of the image's height."})
    side: str = field(
        default="bottom",
        metadata={
            "help": "'bottom', 'top', 'left' or 'right'; at the last two `height` is across, and colours go down.",
            "later": True,
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.colors, str) or not isinstance(self.colors, Sequence) or len(self.colors) == 0:
            raise OverlayError(f"Expected a list of at least one colour for the palette, got {self.colors!r}.")
        object.__setattr__(self, "colors", tuple(self.colors))
        for color in self.colors:
            parse_color(color)
        check_fraction("height", self.height, 0.001)
        if self.side not in SIDES:
            raise OverlayError(f"Expected side out of {list(SIDES)}, got {self.side!r}.")

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; the strip is opaque and at least one pixel high."""
        if self.side in ("left", "right"):
            return self._along(height, width, far=self.side == "right").mT
        return self._along(width, height, far=self.side == "bottom")

    def _along(self, length: int, across: int, far: bool) -> Tensor:
        """The strip along the last axis, [4, across, length], at the far end of the other or at the near one."""
        rows = max(1, round(self.height * across))
        strip = slice(across - rows, across) if far else slice(0, rows)
        swatches = torch.tensor([parse_color(c) for c in self.colors])  # [K, 3]
        index = torch.arange(length) * len(swatches) // length  # [length], of the swatch
        rgba = torch.zeros(4, across, length)
        rgba[:3, strip] = swatches[index].T[:, None]
        rgba[3, strip] = 1
        return rgba

    def questions(self) -> tuple[str, ...]:
        """The authors' three wordings."""
        place = SIDES[self.side]
        return (
            f"Does the color palette overlaid {place} match the image?",
            f"Is the color palette displayed {place} representative of the image's colors?",
            f"Do the predominant colors of the image match the color palette overlaid {place}?",
        )

    def guards(self) -> tuple[str, ...]:
        return ("Is the image free of a strip of color swatches?",)


def palette(colors: Sequence[str], height: float = 0.15, side: str = "bottom") -> Overlay:
    """A strip of colour swatches along a side: "bottom", "top", "left" or "right"."""
    return Overlay((PaletteStrip(colors, height, side),))  # type: ignore[arg-type]  # it makes a tuple of any sequence


def colors_of(picture: Image.Image, count: int) -> tuple[str, ...]:
    """At most `count` colours "#rrggbb" that stand for a picture's, the most frequent first: median cut, then k-means.

    Raises:
        OverlayError: `count` is not from 1 to 256.
    """
    if not 1 <= count <= 256:
        raise OverlayError(f"Expected 1 to 256 colours to take from a picture, got {count}.")
    small = picture.convert("RGB")
    small.thumbnail((LOOK, LOOK), Image.Resampling.BOX)
    groups = np.asarray(small.quantize(count, Image.Quantize.MEDIANCUT, kmeans=ROUNDS)).ravel()
    pixels = np.asarray(small).reshape(-1, 3)
    indices, shares = np.unique(groups, return_counts=True)
    means = [
        pixels[groups == i].mean(axis=0).round().astype(np.uint8) for i in indices[np.argsort(-shares, kind="stable")]
    ]
    return tuple("#" + mean.tobytes().hex() for mean in means)
