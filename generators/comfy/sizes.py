# pyright: reportMissingImports=false
"""What a MODEL and a VAE of ComfyUI take on a device while they train; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...core.sizes import ModelSize, size_up, token_positions
from .memory import DECODER, NETWORK, NETWORK_CHECKPOINTED

TEXT = 256  # tokens, where a CONDITIONING does not say
UNET_WORK = 0.08  # products to a weight and latent pixel: most weights of a UNet work on fewer pixels


def network_size(model: Any, conditionings: Sequence[Any], shape: Sequence[int], samples: int) -> ModelSize:
    """Of a pass with so many samples of latents of this shape, [1, C, h, w] or [1, C, 1, h, w]."""
    network, pixels = model.model.diffusion_model, samples * shape[-2] * shape[-1]
    dtype = model.model.get_dtype_inference()
    if isinstance(network, UNetModel):
        weights = size_up(network, lambda name, layer: 0, dtype)
        estimate = model.memory_required([samples, *shape[1:]])
        return replace(
            weights,
            kept=int(NETWORK * estimate),
            inputs=int(NETWORK_CHECKPOINTED * estimate),
            flops=2 * UNET_WORK * pixels * sum(p.numel() for p in network.parameters()),
        )
    tensors = [row[0] for conditioning in conditionings for row in conditioning]
    text = max((t.shape[1] for t in tensors if t.ndim == 3), default=TEXT)
    patch = model.model.model_config.unet_config.get("patch_size", 2)
    patch = patch if isinstance(patch, int) else patch[-1]
    return size_up(network, token_positions(network, pixels // patch**2, samples * text), dtype)


def decoder_size(vae: Any, shape: Sequence[int], samples: int) -> ModelSize:
    """Of a VAE's decoder for so many latents of this shape, by ComfyUI's own estimate; it recomputes as a whole."""
    kept = int(DECODER * samples * vae.memory_used_decode(tuple(shape), vae.vae_dtype))
    weights = vae.patcher.model_size()
    return ModelSize(weights, weights, weights + kept, kept, inputs=0, block=kept, work=0, flops=0.0)
