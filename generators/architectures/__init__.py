"""The families of image generators that are known, one file each."""

from __future__ import annotations

from .architecture import Architecture
from .flux import FLUX

ARCHITECTURES: tuple[Architecture, ...] = (FLUX,)

__all__ = ["ARCHITECTURES", "Architecture"]
