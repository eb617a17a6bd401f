"""Stage 1: a VAE, on crops of rendered scenes with the world's palettes and random ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import build_vae
from ..world import random_scenes, render
from .common import Checkpoint, Run, cosine, set_learning_rate

STEPS, BATCH, CROP, POOL = 4500, 32, 48, 4096


def _initialise(vae: nn.Module) -> None:
    """He initialisation, the last convolution of each residual branch × 0.1."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name.endswith("conv.4"):
                module.weight.data *= 0.1
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def render_pool(count: int, generator: torch.Generator, free_palette: float) -> Tensor:
    """Rendered scenes as uint8 [count, 3, 112, 112]."""
    parts = [
        (render(random_scenes(min(64, count - i), generator, free_palette)) * 255).round().byte()
        for i in range(0, count, 64)
    ]
    return torch.cat(parts)


def _crops(pool: Tensor, generator: torch.Generator) -> Tensor:
    size = pool.shape[-1]
    index = torch.randint(len(pool), (BATCH,), generator=generator).tolist()
    # Offsets reach past the edges often enough that the borders are learnt as well as the middle.
    offsets = (torch.rand(BATCH, 2, generator=generator) * (size - CROP + 24) - 12).round().long()
    offsets = offsets.clamp(0, size - CROP).tolist()
    crops = torch.stack([pool[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, offsets, strict=True)])
    flip = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, crops.flip(-1), crops).float() / 255


def _loss(vae: AutoencoderTiny, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encoder(images * 2 - 1).float()
        noise = torch.randn(latents.shape, generator=generator) * torch.rand(BATCH, 1, 1, 1, generator=generator) * 0.15
        decoded = (vae.decoder(latents + noise).float() + 1) / 2
    error = decoded - images
    gradient = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    normal = mean.square().mean() + (std - 1).square().mean()
    mse = error.square().mean()
    return error.abs().mean() + 2 * mse + 0.5 * gradient + 0.02 * normal, mse.detach()


def train_vae(run: Run) -> AutoencoderTiny:
    """Trains the first world's VAE, or goes on where an earlier run stopped."""
    return train_on(run, build_vae, lambda count, generator: render_pool(count, generator, free_palette=0.35))


def train_on(
    run: Run, build: Callable[[], AutoencoderTiny], make_pool: Callable[[int, torch.Generator], Tensor]
) -> AutoencoderTiny:
    """Trains a VAE on crops of a pool of pictures, uint8 [N, 3, H, W], or goes on where an earlier run stopped."""
    torch.manual_seed(run.seed)
    steps = run.steps(STEPS)
    vae = build()
    _initialise(vae)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2.5e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    checkpoint = Checkpoint(run.folder / "vae.safetensors", {"vae": vae}, [optimizer])
    start = checkpoint.load()
    if start >= steps:
        return vae.eval()
    pool = make_pool(run.steps(POOL), run.generator("vae-pool"))
    total = 0.0
    for step in range(start, steps):
        generator = run.generator("vae", step)
        set_learning_rate(optimizer, cosine(step, steps))
        loss, mse = _loss(vae, _crops(pool, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        total += float(mse)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            count = (step % 100) + 1
            run.log(
                "vae", step=step + 1, loss=float(loss.detach()), psnr=-10 * float(torch.tensor(total / count).log10())
            )
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(step + 1)
            _show(run, vae, pool[:8].float() / 255)
    return vae.eval()


@torch.no_grad()
def _show(run: Run, vae: AutoencoderTiny, images: Tensor) -> None:
    decoded = (vae.decoder(vae.encoder(images * 2 - 1)) + 1) / 2
    run.picture("vae", torch.cat([images, decoded]))
    run.log("vae-full", psnr=-10 * float(F.mse_loss(decoded.clamp(0, 1), images).log10()))
