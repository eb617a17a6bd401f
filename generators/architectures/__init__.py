"""The families of image generators that are known, one file each."""

from __future__ import annotations

from .architecture import Architecture
from .chroma import CHROMA
from .flux import FLUX
from .flux_2 import FLUX_2_DEV, FLUX_2_KLEIN
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .stable_diffusion import STABLE_DIFFUSION
from .stable_diffusion_3 import STABLE_DIFFUSION_3
from .stable_diffusion_xl import STABLE_DIFFUSION_XL
from .z_image import Z_IMAGE

ARCHITECTURES: tuple[Architecture, ...] = (
    FLUX,
    FLUX_2_DEV,
    FLUX_2_KLEIN,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_3,
    Z_IMAGE,
    QWEN_IMAGE,
    SANA,
    CHROMA,
)

__all__ = ["ARCHITECTURES", "Architecture"]
