"""Stage 1: the VAE of the second world."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ...training.common import Run
from ...training.vae import train_on
from ..models import build_vae
from ..world import Scenes, build_scenes, random_uniforms, render
from .words import numpy_generator, random_prompt

RECOLORED = 0.2


def random_scenes(count: int, generator: torch.Generator) -> Scenes:
    """Scenes of prompts of every form."""
    random = numpy_generator(generator)
    return build_scenes([random_prompt(random)[1] for _ in range(count)], random_uniforms(count, generator))


def render_pool(count: int, generator: torch.Generator) -> Tensor:
    """Rendered scenes as uint8 [count, 3, 128, 128], some of them in other colours."""
    parts = []
    for i in range(0, count, 64):
        size = min(64, count - i)
        scenes = random_scenes(size, generator)
        images = render(replace(scenes, tint=0.1 * torch.randn(size, 3, generator=generator)))
        order = torch.rand(size, 3, generator=generator).argsort(dim=1)
        mixed = images.gather(1, order[:, :, None, None].expand_as(images))
        chosen = torch.rand(size, 1, 1, 1, generator=generator) < RECOLORED
        parts.append((torch.where(chosen, mixed, images) * 255).round().byte())
    return torch.cat(parts)


def train_vae(run: Run) -> AutoencoderTiny:
    """Trains the VAE, or goes on where an earlier run stopped."""
    return train_on(run, build_vae, render_pool)
