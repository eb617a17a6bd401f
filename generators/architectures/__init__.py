"""The families of image generators that are known, one file each."""

from __future__ import annotations

from .architecture import Architecture
from .flux import FLUX
from .flux_2 import FLUX_2_DEV, FLUX_2_KLEIN
from .stable_diffusion import STABLE_DIFFUSION
from .z_image import Z_IMAGE

ARCHITECTURES: tuple[Architecture, ...] = (FLUX, FLUX_2_DEV, FLUX_2_KLEIN, STABLE_DIFFUSION, Z_IMAGE)

__all__ = ["ARCHITECTURES", "Architecture"]
