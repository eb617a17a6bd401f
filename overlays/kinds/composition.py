"""What shall be where: regions, lines and texts as annotations, often over a painting or a sketch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ...core.errors import OverlayError
from ..layer import register
from ..lettering import check_text, extent, fit, write
from ..parameters import RED, check_fraction, color_name, parse_color
from ..shapes import Canvas, frame, segment
from ..stack import Overlay

SMALLEST = 0.02  # side of a region, fraction
LETTERS = 0.045  # size at which text begins to be fitted, fraction of the shorter side
LEAST_LETTERS = 12  # pixels; smaller only where the text would not fit
FREE = (0.95, 0.5)  # room of a text that has no region, fractions of width and height
_T = TypeVar("_T")


@dataclass(frozen=True)
class Region:
    """A rectangle, from its upper left corner, and what it stands for; fractions."""

    x: float
    y: float
    width: float
    height: float
    text: str = ""

    def __post_init__(self) -> None:
        check_fraction("x of a region", self.x)
        check_fraction("y of a region", self.y)
        check_fraction("width of a region", self.width, SMALLEST)
        check_fraction("height of a region", self.height, SMALLEST)
        if self.x + self.width > 1 + 1e-6 or self.y + self.height > 1 + 1e-6:
            raise OverlayError(f"The region {asdict(self)} sticks out. Keep x + width and y + height at most 1.")
        check_text("the text of a region", self.text)


@dataclass(frozen=True)
class Stroke:
    """A straight line from one point to another and what it stands for; fractions."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str = ""

    def __post_init__(self) -> None:
        for name in ("x1", "y1", "x2", "y2"):
            check_fraction(f"{name} of a line", getattr(self, name))
        if max(abs(self.x2 - self.x1), abs(self.y2 - self.y1)) < SMALLEST:
            raise OverlayError(f"The line {asdict(self)} has no length. Move its ends apart.")
        check_text("the text of a line", self.text)


@dataclass(frozen=True)
class Note:
    """A text around a point; fractions."""

    x: float
    y: float
    text: str

    def __post_init__(self) -> None:
        check_fraction("x of a text", self.x)
        check_fraction("y of a text", self.y)
        check_text("the text", self.text)
        if not self.text.strip():
            raise OverlayError("Expected a text to write at a point, got an empty one.")


def _write(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _all(make: Callable[..., _T], rows: Any) -> tuple[_T, ...]:
    """Annotations from themselves, from mappings or from tuples of their values."""
    name = {Region: "regions", Stroke: "lines", Note: "texts"}[make]  # type: ignore[index]
    if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence):
        raise OverlayError(f"Expected {name} as a list, got {rows!r}.")
    made = []
    for row in rows:
        try:
            is_made = isinstance(row, Region | Stroke | Note)
            made.append(row if is_made else make(**row) if isinstance(row, Mapping) else make(*row))
        except TypeError as error:
            raise OverlayError(
                f"Expected each of the {name} as a table of its values, got {row!r}: {error}."
            ) from error
    return tuple(made)


@register
@dataclass(frozen=True)
class Composition:
    """Annotations that say how the picture shall be composed (paper, section 4.2)."""

    kind: ClassVar[str] = "composition"
    regions: tuple[Region, ...] = field(
        default=(), metadata={"help": "Rectangles { x, y, width, height, text }.", "write": _write, "later": True}
    )
    lines: tuple[Stroke, ...] = field(
        default=(), metadata={"help": "Straight lines { x1, y1, x2, y2, text }.", "write": _write, "later": True}
    )
    texts: tuple[Note, ...] = field(
        default=(), metadata={"help": "Texts { x, y, text } around a point.", "write": _write, "later": True}
    )
    thickness: float = field(default=0.008, metadata={"help": "Thickness of outlines, fraction of the shorter side."})
    color: str = field(default=RED, metadata={"help": "Colour of outlines and text."})

    def __post_init__(self) -> None:
        for name, make in (("regions", Region), ("lines", Stroke), ("texts", Note)):
            object.__setattr__(self, name, _all(make, getattr(self, name)))
        if not (self.regions or self.lines or self.texts):
            raise OverlayError("Expected at least one region, line or text for the composition, got none.")
        check_fraction("thickness", self.thickness, 0.001, 0.1)
        parse_color(self.color)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1].

        Raises:
            OverlayError: a text is too long to be legible in its region at this size.
        """
        canvas = Canvas(height, width)
        stroke = max(1, round(self.thickness * canvas.shorter))
        for r in self.regions:  # on whole pixels, so that thin outlines are crisp
            left, top = round(r.x * width), round(r.y * height)
            right, bottom = round((r.x + r.width) * width), round((r.y + r.height) * height)
            canvas.paint(frame(height, width, left, top, right, bottom, stroke), self.color)
        for s in self.lines:
            x1, x2 = _crisp(s.x1 * width, s.x2 * width, stroke)
            y1, y2 = _crisp(s.y1 * height, s.y2 * height, stroke)
            canvas.paint(segment(height, width, x1, y1, x2, y2, stroke), self.color)
        for r in self.regions:  # texts last, over all lines
            room = (r.width * width - 2 * stroke, r.height * height - 2 * stroke)
            self._write(canvas, r.text, (r.x + r.width / 2) * width, (r.y + r.height / 2) * height, room)
        for s in self.lines:
            self._beside(canvas, s, stroke)
        for note in self.texts:
            self._write(canvas, note.text, note.x * width, note.y * height, _free(canvas))
        return canvas.rgba()

    def questions(self) -> tuple[str, ...]:
        """The authors' wording and two more."""
        color = color_name(self.color)
        return (
            f"Does the composition of the image match the overlaid {color} instructions?",
            f"Is the image composed as the overlaid {color} annotations say?",
            f"Does the layout of the image follow the {color} instructions drawn over it?",
        )

    def guards(self) -> tuple[str, ...]:
        return (f"Is the image free of {color_name(self.color)} outlines and written words?",)

    def _write(self, canvas: Canvas, text: str, x: float, y: float, room: tuple[float, float]) -> None:
        if text.strip():
            write(canvas, *self._fitted(text, room, canvas), x, y, self.color)

    def _beside(self, canvas: Canvas, line: Stroke, stroke: float) -> None:
        """The text of a line to the right of its middle, or below if it is rather level; on the side with room."""
        if not line.text.strip():
            return
        middle = [(line.x1 + line.x2) / 2 * canvas.width, (line.y1 + line.y2) / 2 * canvas.height]
        sides, room, away = (canvas.width, canvas.height), list(_free(canvas)), 2.0 * stroke
        steep = abs(line.y2 - line.y1) * canvas.height > abs(line.x2 - line.x1) * canvas.width
        axis = 0 if steep else 1
        after = middle[axis] <= sides[axis] * (0.6 if steep else 0.8)
        room[axis] = (sides[axis] - middle[axis] if after else middle[axis]) - away
        lines, size = self._fit(line.text, room, canvas) or self._fitted(line.text, _free(canvas), canvas)
        middle[axis] += (away + extent(lines, size)[axis] / 2) * (1 if after else -1)
        write(canvas, lines, size, middle[0], middle[1], self.color)

    def _fit(self, text: str, room: Sequence[float], canvas: Canvas) -> tuple[str, int] | None:
        return fit(text, room[0], room[1], max(LETTERS * canvas.shorter, LEAST_LETTERS))

    def _fitted(self, text: str, room: Sequence[float], canvas: Canvas) -> tuple[str, int]:
        fitted = self._fit(text, room, canvas)
        if fitted is None:
            raise OverlayError(
                f"The text {text!r} is too long to be legible in its {room[0]:.0f} × {room[1]:.0f} pixels of a picture "
                f"of {canvas.width} × {canvas.height}. Shorten it, enlarge its region, or take a larger picture."
            )
        return fitted


def _crisp(start: float, end: float, stroke: int) -> tuple[float, float]:
    """Ends along an axis; where both are one, moved so that the line's edges lie between pixels."""
    if start != end:
        return start, end
    middle = round(start - stroke / 2) + stroke / 2
    return middle, middle


def _free(canvas: Canvas) -> tuple[float, float]:
    return FREE[0] * canvas.width, FREE[1] * canvas.height


def composition(
    regions: Sequence[Any] = (),
    lines: Sequence[Any] = (),
    texts: Sequence[Any] = (),
    thickness: float = 0.008,
    color: str = RED,
) -> Overlay:
    """Annotations: `Region`s, `Stroke`s and `Note`s, or tuples or mappings of their values, in fractions."""
    return Overlay((Composition(regions, lines, texts, thickness, color),))  # type: ignore[arg-type]
