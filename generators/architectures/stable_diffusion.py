"""Stable Diffusion 1.4 and 1.5: a UNet that predicts noise, with classifier-free guidance.

The table of layers maps CompVis' numbered blocks to diffusers' (diffusers `convert_from_ckpt.py`): each resolution has
two of them on the way down and three on the way up, and a sampling layer between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size
from .layers import Block, same_names
from .paths import DIFFUSION, diffusion_sigmas, timestep_of

RESOLUTIONS = 4
LAYERS = same_names(
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2"),
)


def unet_blocks(resolutions: int = RESOLUTIONS) -> Iterator[Block]:
    """Every place of a UNet that may have transformer blocks."""
    for i in range(resolutions):
        for j in range(2):
            yield _block(f"input_blocks.{3 * i + j + 1}.1", f"down_blocks.{i}.attentions.{j}")
    yield _block("middle_block.1", "mid_block.attentions.0")
    for i in range(resolutions):
        for j in range(3):
            yield _block(f"output_blocks.{3 * i + j}.1", f"up_blocks.{i}.attentions.{j}")


def _block(comfyui: str, diffusers: str) -> Block:
    return Block(f"{comfyui}.transformer_blocks.{{}}", f"{diffusers}.transformer_blocks.{{}}", LAYERS)


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    sequence, _ = pipeline.encode_prompt(text, device, 1, False)
    return {"sequence": sequence}  # [1, L, cross_attention_dim]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """The noise in latents [B, C, h, w] of noise levels [B]."""
    return parts.network(
        scaled_input(parts, x, sigma),
        timestep_of(parts.scheduler, sigma),
        encoder_hidden_states=conditions["sequence"],
        return_dict=False,
    )[0]


def scaled_input(parts: Parts, x: Tensor, sigma: Tensor) -> Tensor:
    """Latents as the network was trained on them: of variance 1."""
    return (x / torch.sqrt(1 + sigma[:, None, None, None] ** 2)).to(parts.dtype)


STABLE_DIFFUSION = Architecture(
    label="Stable Diffusion 1.x",
    pipelines=("StableDiffusionPipeline",),
    comfyui={"SD15": "sd-1"},
    name=lambda config: "sd-1",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: diffusion_sigmas(scheduler, steps),
    predict=predict,
    blocks=tuple(unet_blocks()),
    steps=lambda config: 50,
    guidance=lambda config: Guidance("cfg", 7.5),
    network="unet",
    path=DIFFUSION,
    kohya="diffusers",
)
