"""Visual prompts drawn on the image before the critic looks at it."""

from .kinds.horizon import HorizonLine, horizon
from .kinds.image import ImageOverlay
from .kinds.palette import PaletteStrip, palette
from .layer import KINDS, Layer
from .parameters import parse_color
from .stack import Overlay, build, composite

__all__ = [
    "KINDS",
    "HorizonLine",
    "ImageOverlay",
    "Layer",
    "Overlay",
    "PaletteStrip",
    "build",
    "composite",
    "horizon",
    "palette",
    "parse_color",
]
