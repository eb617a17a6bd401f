"""Parameters that kinds share: colours, fractions and numbers, checked."""

from __future__ import annotations

from PIL import ImageColor

from ..core.errors import OverlayError

RED = "#ff0000"
COLOR_NAMES = (
    *("red", "orange", "yellow", "green", "lime", "cyan", "blue", "purple", "magenta", "pink", "brown"),
    *("black", "gray", "white"),
)


def parse_color(color: str) -> tuple[float, float, float]:
    """sRGB in [0, 1] of any opaque colour that Pillow can name ("#ff0000", "red", "rgb(255, 0, 0)")."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(color)
    except (ValueError, TypeError, AttributeError) as error:
        raise OverlayError(f"Expected a colour such as '#ff0000' or 'red', got {color!r}.") from error
    if alpha and alpha[0] != 255:
        raise OverlayError(f"Expected an opaque colour such as '#ff0000', got {color!r}, which is see-through.")
    return red / 255, green / 255, blue / 255


def color_name(color: str) -> str:
    """The plain word that is nearest to a colour, for questions: "red" for "#f01010"."""
    wanted = parse_color(color)
    nearest = min(COLOR_NAMES, key=lambda n: sum((a - b) ** 2 for a, b in zip(parse_color(n), wanted, strict=True)))
    return "green" if nearest == "lime" else nearest


def contrast(color: str) -> str:
    """White or black, whichever stands out more from a colour."""
    red, green, blue = parse_color(color)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.6 else "black"


def check_fraction(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise OverlayError(f"Expected {name} as a fraction of the image from {low} to {high}, got {value!r}.")
