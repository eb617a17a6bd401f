"""Pictures that the second world's critic learns from, as it will see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ..world import LATENT_SIZE, Scenes, build_scenes, concatenate, random_uniforms, render
from .words import numpy_generator, random_prompt


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 [N, 3, 128, 128], the scenes that they show, and scenes of other noise for the same prompts."""

    images: Tensor
    scenes: Scenes
    others: Scenes

    def batch(self, count: int, generator: torch.Generator) -> Pool:
        index = torch.randint(len(self.images), (count,), generator=generator)
        return Pool(self.images[index], self.scenes.select(index), self.others.select(index))

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        named = (("scenes", self.scenes), ("others", self.others))
        return {"images": self.images, **{f"{n}.{k}": v for n, some in named for k, v in vars(some).items()}}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> Pool:
        def scenes(name: str) -> Scenes:
            return Scenes(**{k.split(".")[1]: v for k, v in tensors.items() if k.startswith(f"{name}.")})

        return cls(tensors["images"], scenes("scenes"), scenes("others"))


@torch.no_grad()
def see_through(
    vae: AutoencoderTiny, images: Tensor, strength: Tensor, generator: torch.Generator, halved: bool = True
) -> Tensor:
    """Pictures after the VAE, with some noise in their latents, as generated ones are; by choice in bfloat16."""
    noise = strength * torch.randn(len(images), 16, LATENT_SIZE, LATENT_SIZE, generator=generator)
    with torch.autocast(
        "cpu", torch.bfloat16, enabled=halved
    ):  # a few at a time, as many as the processor's cache holds
        parts = [
            vae.decoder(vae.encoder(some * 2 - 1).float() + more)
            for some, more in zip(images.split(4), noise.split(4), strict=True)
        ]
    return ((torch.cat(parts).float() + 1) / 2).clamp(0, 1)


def make_pool(count: int, vae: AutoencoderTiny, generator: torch.Generator, halved: bool = True) -> Pool:
    """Scenes of prompts of every form, three quarters seen through the VAE, in bfloat16 if `halved`."""
    random = numpy_generator(generator)
    images, scenes, others = [], [], []
    for part in range(0, count, 64):
        words = [random_prompt(random)[1] for _ in range(64)]
        batch, other = (build_scenes(words, random_uniforms(64, generator)) for _ in range(2))
        pictures = render(batch)
        if part // 64 % 4:
            pictures = see_through(vae, pictures, torch.rand(64, 1, 1, 1, generator=generator) * 0.3, generator, halved)
        images.append((pictures * 255).round().byte())
        scenes.append(batch)
        others.append(other)
    return Pool(torch.cat(images), concatenate(scenes), concatenate(others))
