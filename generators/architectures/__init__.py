"""The families of image generators that are known, one file each."""

from __future__ import annotations

from .architecture import Architecture
from .flux import FLUX
from .stable_diffusion import STABLE_DIFFUSION
from .stable_diffusion_xl import STABLE_DIFFUSION_XL

ARCHITECTURES: tuple[Architecture, ...] = (FLUX, STABLE_DIFFUSION, STABLE_DIFFUSION_XL)

__all__ = ["ARCHITECTURES", "Architecture"]
