"""Visual prompts drawn on the image before the critic looks at it."""

from .layers import HorizonLine, ImageOverlay, PaletteStrip, parse_color
from .stack import KINDS, Layer, Overlay, build, composite, horizon, palette

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
