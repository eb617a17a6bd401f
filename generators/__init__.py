"""What is trained: image generators behind one protocol, one small adapter per architecture."""

from .diffusers.generator import FluxGenerator
from .loading import load_generator

__all__ = ["FluxGenerator", "load_generator"]
