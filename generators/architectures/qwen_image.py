"""Qwen-Image: one kind of block for picture and text, with classifier-free guidance.

ComfyUI has kept diffusers' names for the layers. Its plain guidance differs from the pipeline's, see `rescaled_cfg`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size, plain_cfg
from .layers import Block, same_names
from .packing import PATCH, pack, unpack
from .paths import flow_sigmas, shift_by_size

MAX_TOKENS = 512  # of a prompt, as the pipeline cuts it
EMPTY = " "  # what the model's authors pass as the empty prompt of guidance

BLOCKS = (
    Block(
        "transformer_blocks.{}",
        "transformer_blocks.{}",
        same_names(
            *(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")),
            *(f"attn.{layer}" for layer in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
            *(f"{stream}_mlp.{layer}" for stream in ("img", "txt") for layer in ("net.0.proj", "net.2")),
            *("img_mod.1", "txt_mod.1"),
        ),
    ),
)


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    sequence, _ = pipeline.encode_prompt(text or EMPTY, device, max_sequence_length=MAX_TOKENS)
    mask = torch.ones(sequence.shape[:2], dtype=torch.bool, device=sequence.device)
    return {"sequence": sequence, "mask": mask}  # [1, L, joint_attention_dim], [1, L]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of tokens [B, T, 64]."""
    network, mask = parts.network, conditions["mask"]
    return network(
        hidden_states=x.to(parts.dtype),
        timestep=(sigma * 1000).to(parts.dtype) / 1000,  # rounded as QwenImagePipeline rounds it
        encoder_hidden_states=conditions["sequence"],
        encoder_hidden_states_mask=None if mask.all() else mask,
        img_shapes=[[(1, size.height // PATCH, size.width // PATCH)]] * len(x),
        return_dict=False,
    )[0]


def rescaled_cfg(with_prompt: Tensor, without: Tensor, strength: float) -> Tensor:
    """Guidance that leaves each token's velocity [B, T, 64] as long as it is without guidance."""
    combined = plain_cfg(with_prompt, without, strength)
    return combined * (with_prompt.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> pictures: one frame of a video VAE, whose own `decode` would clamp them."""
    mean, std = (torch.tensor(vae.config[name]).to(latents) for name in ("latents_mean", "latents_std"))
    frames = (latents * std[:, None, None] + mean[:, None, None])[:, :, None].to(vae.dtype)  # [B, C, 1, h, w]
    return vae.decoder(vae.post_quant_conv(frames))[:, :, 0]


QWEN_IMAGE = Architecture(
    label="Qwen-Image",
    pipelines=("QwenImagePipeline",),
    comfyui={"QwenImage": "qwen-image"},
    name=lambda config: "qwen-image",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: flow_sigmas(scheduler, steps, shift_by_size(scheduler, size.tokens)),
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 50,
    guidance=lambda config: Guidance("cfg", 4.0),
    channels=lambda config: config["in_channels"] // PATCH**2,
    factor=lambda vae: 2 ** len(vae.config.temperal_downsample),
    patch=PATCH,
    pack=pack,
    unpack=unpack,
    decode=decode,
    combine=rescaled_cfg,
    alphas=False,
)
