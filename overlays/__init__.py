"""Visual prompts drawn on the image before the critic looks at it."""

from .kinds.composition import Composition, Note, Region, Stroke, composition
from .kinds.depth import DepthPoints, depth
from .kinds.horizon import HorizonLine, horizon
from .kinds.image import ImageOverlay
from .kinds.line_weight import LineWeight, line_weight
from .kinds.palette import PaletteStrip, colors_of, palette
from .layer import KINDS, Layer
from .parameters import parse_color
from .ranges import Range, between, build
from .stack import Overlay, composite

__all__ = [
    "KINDS",
    "Composition",
    "DepthPoints",
    "HorizonLine",
    "ImageOverlay",
    "Layer",
    "LineWeight",
    "Note",
    "Overlay",
    "PaletteStrip",
    "Range",
    "Region",
    "Stroke",
    "between",
    "build",
    "colors_of",
    "composite",
    "composition",
    "depth",
    "horizon",
    "line_weight",
    "palette",
    "parse_color",
]
