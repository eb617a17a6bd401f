"""What is trained: image generators behind one protocol, one small adapter per architecture."""

from .diffusers.generator import DiffusersGenerator
from .loading import load_generator

__all__ = ["DiffusersGenerator", "load_generator"]
