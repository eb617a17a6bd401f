"""Tiny random pipelines of the real classes, one file for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Tiny:
    """How an architecture's tiny pipeline is made and called."""

    name: str  # as `generator.info.architecture` says it
    build: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)  # of the pipeline's call
    layout: Callable[[Any], Any] = lambda noise: noise  # noise [B, C, h, w] as the pipeline takes `latents`
    learning_rate: float = 0.05
    targets: str = "attention + feed-forward"
    lora: float = 0.3  # deviation of a random LoRA's B; less where that makes a deep network chaotic
    size: int = 64  # pixels, the smaller side
    margin: float = 0.05  # by which thirty steps must move brightness and redness


@torch.no_grad()
def centred(vae: Any, latents: torch.Size | tuple[int, ...]) -> Any:
    """The VAE with pictures around the middle of the displayable range, where a critic's gradient passes."""
    latent = torch.randn(latents, generator=torch.Generator().manual_seed(1))
    last = [m for m in vae.decoder.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d)][-1]

    def means() -> torch.Tensor:
        picture = vae.decode(latent, return_dict=False)[0]
        return picture.mean(dim=[0, *range(2, picture.ndim)])

    last.weight.mul_(0.6 / float(vae.decode(latent, return_dict=False)[0].std()))
    before = means()
    last.bias.add_(1.0)
    last.bias.sub_(1.0 + before / (means() - before))
    return vae
