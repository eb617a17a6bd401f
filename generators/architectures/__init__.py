"""The families of image generators that are known, one file each."""

from __future__ import annotations

from .architecture import Architecture
from .chroma import CHROMA
from .flux import FLUX
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .stable_diffusion import STABLE_DIFFUSION

ARCHITECTURES: tuple[Architecture, ...] = (FLUX, STABLE_DIFFUSION, QWEN_IMAGE, SANA, CHROMA)

__all__ = ["ARCHITECTURES", "Architecture"]
