"""Stable Diffusion XL: the UNet of 1.x, which also sees the size of the picture and a pooled encoding of the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size, decoder_factor
from .paths import DIFFUSION, diffusion_sigmas, timestep_of
from .stable_diffusion import scaled_input, unet_blocks


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    sequence, _, pooled, _ = pipeline.encode_prompt(text, device=device, do_classifier_free_guidance=False)
    return {"sequence": sequence, "pooled": pooled}  # [1, L, cross_attention_dim], [1, pooled width]


def empty(conditions: Conditions, config: Config) -> Conditions:
    """Zeros, if the pipeline's configuration says so."""
    if not config.get("force_zeros_for_empty_prompt", True):
        return conditions
    return {name: torch.zeros_like(tensor) for name, tensor in conditions.items()}


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """The noise in latents [B, C, h, w] of noise levels [B]."""
    pooled = conditions["pooled"]
    return parts.network(
        scaled_input(parts, x, sigma),
        timestep_of(parts.scheduler, sigma),
        encoder_hidden_states=conditions["sequence"],
        added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes(parts, size).to(pooled).expand(len(x), -1)},
        return_dict=False,
    )[0]


def sizes(parts: Parts, size: Size) -> Tensor:
    """Of the original picture, of the corner that was cut off, and of the picture, in pixels, [1, 6]."""
    factor = decoder_factor(parts.vae)
    picture = (size.height * factor, size.width * factor)
    return torch.tensor([[*picture, 0, 0, *picture]])


STABLE_DIFFUSION_XL = Architecture(
    label="Stable Diffusion XL",
    pipelines=("StableDiffusionXLPipeline",),
    comfyui={"SDXL": "sd-xl"},
    name=lambda config: "sd-xl",
    encoders=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    encode=encode,
    empty=empty,
    sigmas=lambda scheduler, steps, size: diffusion_sigmas(scheduler, steps),
    predict=predict,
    blocks=tuple(unet_blocks()),
    steps=lambda config: 50,
    guidance=lambda config: Guidance("cfg", 5.0),
    network="unet",
    path=DIFFUSION,
)
