"""Starting noise that depends on nothing but its seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import GeneratorError


def draw_noise(seeds: Sequence[int], channels: int, height: int, width: int) -> Tensor:
    """Standard normal latents [B, channels, height, width], float32 on the CPU, one sample per seed.

    Each sample has its own CPU generator, so it is the same on every machine, in every batch, and equal to what
    ComfyUI draws for that seed and latent size. The global random state is not touched.

    Raises:
        GeneratorError: a seed is not an integer of at most 64 bits.
    """
    return torch.stack([_draw_one(seed, channels, height, width) for seed in seeds])


def _draw_one(seed: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(channels, height, width, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own for a seed of at most 64 bits.

    Raises:
        GeneratorError: `seed` is something else.
    """
    try:
        return torch.Generator().manual_seed(seed)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise GeneratorError(f"Expected a seed from 0 to 2^64 - 1, got {seed!r}.") from error
