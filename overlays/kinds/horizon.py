"""Where the horizon shall be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...core.errors import OverlayError
from ..layer import register
from ..parameters import RED, check_fraction, color_name, parse_color
from ..shapes import interval
from ..stack import Overlay


@register
@dataclass(frozen=True)
class HorizonLine:
    """A straight line across the whole width: "the horizon is here" (paper, section 4.2)."""

    kind: ClassVar[str] = "horizon"
    position: float = field(metadata={"help": "Height of the line's middle, fraction of the height from the top."})
    thickness: float = field(default=0.02, metadata={"help": "Thickness, fraction of the height."})
    color: str = field(default=RED, metadata={"help": "Colour of the line."})
    tilt: float = field(
        default=0.0, metadata={"help": "Degrees from -45 to 45; above 0 the right end is higher.", "later": True}
    )

    def __post_init__(self) -> None:
        check_fraction("position", self.position)
        check_fraction("thickness", self.thickness, 0.001)
        parse_color(self.color)
        if isinstance(self.tilt, bool) or not isinstance(self.tilt, int | float) or not abs(self.tilt) <= 45:
            raise OverlayError(f"Expected tilt as degrees from -45 to 45, got {self.tilt!r}.")

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; at least one pixel thick, across its direction."""
        tilt = math.radians(self.tilt)
        half = max(self.thickness * height, 1.0) / 2 / math.cos(tilt)
        beside = torch.arange(width, dtype=torch.float64) + 0.5 - width / 2  # each column's distance from the middle
        middle = self.position * height - math.tan(tilt) * beside
        alpha = interval(height, middle - half, middle + half)
        color = torch.tensor(parse_color(self.color))[:, None, None].expand(3, height, width)
        return torch.cat([color, alpha[None]])

    def questions(self) -> tuple[str, ...]:
        """Both of the authors' wordings, and another."""
        line = f"{color_name(self.color)} line"
        return (
            f"Is the overlaid {line} aligned with the horizon of the scene?",
            f"Does the overlaid {line} represent the horizon of the scene?",
            f"Does the horizon of the scene lie along the overlaid {line}?",
        )

    def describe(self) -> str:
        return f"horizon at {100 * self.position:.3g} %"

    def guards(self) -> tuple[str, ...]:
        return (f"Is the image free of any {color_name(self.color)} line drawn across it?",)


def horizon(position: float, thickness: float = 0.02, color: str = RED, tilt: float = 0.0) -> Overlay:
    """A horizon line at a height (fraction from the top), tilted by degrees; above 0 the right end is higher."""
    return Overlay((HorizonLine(position, thickness, color, tilt),))
