"""Painters made of diffusers' pipelines."""

from .flux import FluxPainter
from .loading import load_inpaint, load_kontext

__all__ = ["FluxPainter", "load_inpaint", "load_kontext"]
