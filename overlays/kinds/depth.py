"""What shall be near, and what far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from string import ascii_uppercase
from typing import Any, ClassVar

from torch import Tensor

from ...core.errors import OverlayError
from ..layer import register
from ..lettering import inside, write
from ..parameters import RED, check_fraction, color_name, contrast, parse_color
from ..shapes import Canvas, disc
from ..stack import Overlay

LEAST_RADIUS = 6.5  # pixels; a letter has room within
RIM = 0.08  # of the radius


def _write(points: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(point) for point in points]


@register
@dataclass(frozen=True)
class DepthPoints:
    """Dots with the letters A, B, … of which the question says which is nearer (paper, section 4.2)."""

    kind: ClassVar[str] = "depth"
    points: tuple[tuple[float, float], ...] = field(
        metadata={"help": "Two or more of [x, y], fractions from the upper left corner: A, B, …", "write": _write}
    )
    order: str | None = field(
        default=None,
        metadata={"help": "Their letters from the nearest to the farthest, such as 'BA'; none = 'AB…'.", "later": True},
    )
    radius: float = field(default=0.035, metadata={"help": "Radius of the dots, fraction of the shorter side."})
    color: str = field(default=RED, metadata={"help": "Colour of the dots."})

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _points(self.points))
        letters = self.letters
        if self.order is not None and (not isinstance(self.order, str) or sorted(self.order) != sorted(letters)):
            raise OverlayError(f"Expected order as the letters {letters!r}, the nearest first, got {self.order!r}.")
        check_fraction("radius", self.radius, 0.01, 0.25)
        parse_color(self.color)
        for (a, one), (b, other) in combinations(zip(letters, self.points, strict=True), 2):
            if (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 < (2 * self.radius) ** 2:
                raise OverlayError(
                    f"Points {a} and {b} lie on top of each other, at {one} and {other}. Move them at least "
                    f"{2 * self.radius:g} apart, or make the radius smaller."
                )

    @property
    def letters(self) -> str:
        return ascii_uppercase[: len(self.points)]

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]; dots at the edge are moved inwards until they are whole."""
        canvas = Canvas(height, width)
        radius = max(self.radius * canvas.shorter, LEAST_RADIUS)
        for letter, (x, y) in zip(self.letters, self.points, strict=True):
            across, down = inside(x * width, 2 * radius, width), inside(y * height, 2 * radius, height)
            rim = max(1.0, RIM * radius)
            canvas.paint(disc(height, width, across, down, radius), contrast(self.color))
            canvas.paint(disc(height, width, across, down, radius - rim), self.color)
            write(canvas, letter, round(1.5 * radius), across, down, contrast(self.color), rim=False)
        return canvas.rgba()

    def questions(self) -> tuple[str, ...]:
        """The authors' two wordings and another; for more than two points all are named in order."""
        near, *_, far = order = self.order or self.letters
        if len(order) == 2:
            return (
                f"Is Point {near} in the foreground and Point {far} in the background?",
                f"Is Point {near} much closer to the camera than Point {far}?",
                f"Is Point {far} much farther from the camera than Point {near}?",
            )
        points = [f"Point {letter}" for letter in order]
        return (
            f"From the foreground to the background, is the order of the points {', '.join(order)}?",
            f"Is {_chain(points, 'closer to the camera than')}?",
            f"Is {_chain(points[::-1], 'farther from the camera than')}?",
        )

    def guards(self) -> tuple[str, ...]:
        return (f"Is the image free of {color_name(self.color)} dots and letters drawn over it?",)


def _points(points: Any) -> tuple[tuple[float, float], ...]:
    if isinstance(points, str) or not isinstance(points, Sequence) or not 2 <= len(points) <= len(ascii_uppercase):
        raise OverlayError(f"Expected a list of 2 to 26 points [x, y], got {points!r}.")
    for letter, point in zip(ascii_uppercase, points, strict=False):
        if isinstance(point, str) or not isinstance(point, Sequence) or len(point) != 2:
            raise OverlayError(f"Expected point {letter} as [x, y], got {point!r}.")
        check_fraction(f"x of point {letter}", point[0])
        check_fraction(f"y of point {letter}", point[1])
    return tuple((x, y) for x, y in points)


def _chain(points: list[str], relation: str) -> str:
    """Says of each point and the next that the relation holds between them."""
    return ", and ".join(f"{a} {relation} {b}" for a, b in pairwise(points))


def depth(
    points: Sequence[Sequence[float]], order: str | None = None, radius: float = 0.035, color: str = RED
) -> Overlay:
    """Dots A, B, … at points (x, y), fractions; `order` says which is the nearest, "BA" for B before A."""
    return Overlay((DepthPoints(points, order, radius, color),))  # type: ignore[arg-type]  # it makes tuples
