"""Where the horizon shall be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..layer import register
from ..parameters import RED, check_fraction, parse_color
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

    def __post_init__(self) -> None:
        check_fraction("position", self.position)
        check_fraction("thickness", self.thickness, 0.001)
        parse_color(self.color)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; at least one pixel thick."""
        half = max(self.thickness * height, 1.0) / 2
        alpha = interval(height, self.position * height - half, self.position * height + half)
        color = torch.tensor(parse_color(self.color))[:, None, None].expand(3, height, width)
        return torch.cat([color, alpha[None, :, None].expand(1, height, width)])


def horizon(position: float, thickness: float = 0.02, color: str = "#ff0000") -> Overlay:
    """A horizon line at a height (fraction from the top)."""
    return Overlay((HorizonLine(position, thickness, color),))
