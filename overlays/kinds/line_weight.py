"""How thick the lines of a drawing shall be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..layer import register
from ..lettering import extent, inside, write
from ..parameters import RED, check_fraction, color_name, parse_color
from ..shapes import Canvas, rectangle
from ..stack import Overlay

THIN = 0.012  # fraction of the height; lines as thin are asked about without their colour (the authors' remedy)


@register
@dataclass(frozen=True)
class LineWeight:
    """A bar as thick as the lines shall be (paper, section 4.2); with `compare`, bar A beside another, B."""

    kind: ClassVar[str] = "line_weight"
    thickness: float = field(metadata={"help": "Thickness that the lines shall have, fraction of the height."})
    compare: float | None = field(
        default=None, metadata={"help": "Thickness of a second bar, B, that the lines shall not have.", "later": True}
    )
    x: float = field(default=0.5, metadata={"help": "Middle of the bar, fraction of the width from the left."})
    y: float = field(default=0.92, metadata={"help": "Middle of the bar, fraction of the height from the top."})
    length: float = field(default=0.6, metadata={"help": "Length of the bar, or of both, fraction of the width."})
    color: str = field(default=RED, metadata={"help": "Colour of the bar."})

    def __post_init__(self) -> None:
        check_fraction("thickness", self.thickness, 0.001, 0.5)
        if self.compare is not None:
            check_fraction("compare", self.compare, 0.001, 0.5)
        check_fraction("x", self.x)
        check_fraction("y", self.y)
        check_fraction("length", self.length, 0.05)
        parse_color(self.color)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; bars are at least a pixel thick and wholly inside the picture."""
        canvas = Canvas(height, width)
        length = self.length * width
        left = inside(self.x * width, length, width) - length / 2
        bars = [self.thickness] if self.compare is None else [self.thickness, self.compare]
        each = length if len(bars) == 1 else length * 0.45
        middle = inside(self.y * height, max(1.0, max(bars) * height), height)
        for letter, start, bar in zip("AB", (left, left + length - each), bars, strict=False):
            thick = max(1.0, bar * height)
            top = min(round(middle - thick / 2), int(height - thick))  # an edge between pixels; exactly as thick
            canvas.paint(rectangle(height, width, start, top, start + each, top + thick), self.color)
            if len(bars) == 2:
                _letter(canvas, letter, start + each / 2, top, thick, self.color)
        return canvas.rgba()

    def questions(self) -> tuple[str, ...]:
        """The authors' wording, which leaves the colour out for thin lines, and two more."""
        line = f"{color_name(self.color)} line overlaid {self._place()}"
        if self.compare is not None:
            return (
                f"Does the line weight of the image match line A rather than line B of those overlaid {self._place()}?",
                f"Are the lines of the image as thick as line A, and not as line B, overlaid {self._place()}?",
                f"Is line A, overlaid {self._place()}, closer to the line weight of the image than line B?",
            )
        texts = (
            f"Does the line weight of the image match the {line}?",
            f"Are the lines of the image as thick as the {line}?",
            f"Is the {line} representative of the line weight of the image?",
        )
        if self.thickness > THIN:
            return texts
        return tuple(f"Ignoring the line color, {text[0].lower()}{text[1:]}" for text in texts)

    def describe(self) -> str:
        return f"lines of {100 * self.thickness:.2g} % of the height"

    def guards(self) -> tuple[str, ...]:
        return ("Is the line in the drawing black?",)

    def _place(self) -> str:
        return "at the top" if self.y < 1 / 3 else "at the bottom" if self.y > 2 / 3 else "in the middle"


def _letter(canvas: Canvas, letter: str, x: float, top: float, thick: float, color: str) -> None:
    """A letter above its bar, or below where there is no room."""
    size = max(11, round(0.05 * canvas.shorter))
    high = extent(letter, size)[1]
    above = top - high * 0.6
    write(canvas, letter, size, x, above if above >= high / 2 else top + thick + high * 0.6, color)


def line_weight(
    thickness: float,
    compare: float | None = None,
    x: float = 0.5,
    y: float = 0.92,
    length: float = 0.6,
    color: str = RED,
) -> Overlay:
    """A bar as thick as the lines shall be (fraction of the height), at a place; with `compare` a second one, B."""
    return Overlay((LineWeight(thickness, compare, x, y, length, color),))
