"""Parameters that kinds share: colours and fractions, checked."""

from __future__ import annotations

from PIL import ImageColor

from ..core.errors import OverlayError

RED = "#ff0000"


def parse_color(color: str) -> tuple[float, float, float]:
    """sRGB in [0, 1] of any opaque colour that Pillow can name ("#ff0000", "red", "rgb(255, 0, 0)")."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(color)
    except (ValueError, TypeError, AttributeError) as error:
        raise OverlayError(f"Expected a colour such as '#ff0000' or 'red', got {color!r}.") from error
    if alpha and alpha[0] != 255:
        raise OverlayError(f"Expected an opaque colour such as '#ff0000', got {color!r}, which is see-through.")
    return red / 255, green / 255, blue / 255


def check_fraction(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise OverlayError(f"Expected {name} as a fraction of the image from {low} to {high}, got {value!r}.")
