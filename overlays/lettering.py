"""Text in Pillow's own font: checked, wrapped, made to fit, painted with a rim that keeps it legible on any picture."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..core.errors import OverlayError
from .parameters import contrast
from .shapes import Canvas

LEAST_SIZE = 9  # pixels; smaller letters run together
LONGEST = 200  # characters
_MISSING = "\U0010ffff"  # no font has it


def check_text(name: str, text: object) -> None:
    """Raises OverlayError unless `text` is one that can be drawn; "" is one."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise OverlayError(f"Expected {name} as a text of at most {LONGEST} characters, got {text!r}.")
    if lacking := sorted({c for c in text if not c.isspace() and not _is_drawable(c)}):
        raise OverlayError(
            f"The font has no {', '.join(map(repr, lacking))}, which {name} {text!r} uses. Write it apart."
        )


def fit(text: str, width: float, height: float, size: float) -> tuple[str, int] | None:
    """The text with line breaks and the largest letters, up to `size`, by which it fits; None if none are legible.

    All in pixels.
    """
    for letters in _sizes(size):
        lines = _wrapped(text, width, letters)
        across, down = extent(lines, letters)
        if across <= width and down <= height:
            return lines, letters
    return None


def extent(lines: str, size: int) -> tuple[float, float]:
    """Width and height of the text with its rim, pixels."""
    left, top, right, bottom = _box(lines, size)
    return right - left + 2 * _rim(size), bottom - top + 2 * _rim(size)


def write(canvas: Canvas, lines: str, size: int, x: float, y: float, color: str, rim: bool = True) -> None:
    """Paints the text around (x, y), moved inwards where it would stick out."""
    across, down = extent(lines, size)
    x, y = inside(x, across, canvas.width), inside(y, down, canvas.height)
    if rim:
        canvas.paint(_coverage(canvas, lines, size, x, y, _rim(size)), contrast(color))
    canvas.paint(_coverage(canvas, lines, size, x, y, 0), color)


def inside(middle: float, length: float, whole: float) -> float:
    """`middle` moved so that a thing of `length` lies within [0, whole]; the middle of all if it is too long."""
    return whole / 2 if length >= whole else min(max(middle, length / 2), whole - length / 2)


def _coverage(canvas: Canvas, lines: str, size: int, x: float, y: float, rim: int) -> torch.Tensor:
    mask = Image.new("L", (canvas.width, canvas.height))
    left, top, right, bottom = _box(lines, size)
    across, down = round(x - (left + right) / 2), round(y - (top + bottom) / 2)
    for number, line in enumerate(lines.split("\n")):
        place = (across, down + number * _step(size))
        ImageDraw.Draw(mask).text(place, line, 255, _font(size), anchor="ms", stroke_width=rim)
    return torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255)


def _box(lines: str, size: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the ink, seen from the middle of the first line's foot."""
    boxes = [_font(size).getbbox(line, anchor="ms") for line in lines.split("\n")]
    top, bottom = boxes[0][1], boxes[-1][3] + (len(boxes) - 1) * _step(size)
    return min(box[0] for box in boxes), top, max(box[2] for box in boxes), bottom


def _step(size: int) -> int:
    """From line to line, pixels."""
    return round(1.15 * size)


def _wrapped(text: str, width: float, size: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font(size).getlength(longer) + 2 * _rim(size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(line for line in lines if line)


def _sizes(largest: float) -> Iterator[int]:
    size = max(round(largest), LEAST_SIZE)
    while size > LEAST_SIZE:
        yield size
        size = min(size - 1, round(size * 0.95))
    yield LEAST_SIZE


def _rim(size: int) -> int:
    return max(1, round(size / 10))


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as in all of Pillow's wheels
    return font


@lru_cache(maxsize=1024)
def _is_drawable(character: str) -> bool:
    return _picture(character) != _picture(_MISSING)


def _picture(character: str) -> bytes:
    picture = Image.new("L", (64, 64))
    ImageDraw.Draw(picture).text((8, 8), character, 255, _font(32))
    return picture.tobytes()
