"""What a pipeline takes on a device, from its configuration: nothing needs to be loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...core.sizes import ModelSize, Positions, counted_positions, size_up, token_positions
from ..architectures.architecture import Architecture, Size
from .denoising import decoding_parts

META = torch.device("meta")


def network_size(
    architecture: Architecture, network: Any, size: Size, text: int, samples: int, quantization: str | None = None
) -> ModelSize:
    """Of a step's pass with so many samples, each with a prompt of `text` tokens."""
    if architecture.network == "unet":
        found = _unet_positions(network, size, text, samples)
    else:
        image = size.height * size.width // architecture.patch**2
        found = token_positions(network, image * samples, text * samples)
    return size_up(network, found, network.dtype, quantization)


def _unet_positions(unet: Any, size: Size, text: int, samples: int) -> Positions:
    config = unet.config
    latents = torch.empty(samples, config.in_channels, size.height, size.width, dtype=unet.dtype, device=META)
    sequence = torch.empty(samples, text, config.cross_attention_dim, dtype=unet.dtype, device=META)
    more: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        times = 6 * config.addition_time_embed_dim
        pooled = torch.empty(samples, config.projection_class_embeddings_input_dim - times, device=META)
        more = {"text_embeds": pooled.to(unet.dtype), "time_ids": torch.empty(samples, 6, device=META)}
    step = torch.empty(samples, device=META)
    return counted_positions(
        lambda unet, *given: unet(*given, added_cond_kwargs=more, return_dict=False), unet, latents, step, sequence
    )


def decoder_size(architecture: Architecture, vae: Any, size: Size, samples: int) -> ModelSize:
    """Of the VAE's decoder for so many samples."""
    latents = torch.empty(samples, size.channels, size.height, size.width, device=META)
    latents = architecture.unpack(architecture.pack(latents), size.height, size.width)
    found = counted_positions(architecture.decode, vae, latents)
    whole = size_up(nn.ModuleList(decoding_parts(vae)), found, vae.dtype)
    return whole if vae._supports_gradient_checkpointing else replace(whole, inputs=0, block=whole.kept)
