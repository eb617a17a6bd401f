"""FLUX.2 dev and klein: Flux.1's blocks with modulations that all share, on latents of its VAE's 2 × 2 patches.

The table of layers maps Black Forest Labs' own names to diffusers' (black-forest-labs/flux2 `model.py`, diffusers
`convert_flux2_to_diffusers.py`). The modulations are not in it: they belong to no block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor
from torch.nn import functional as F

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size, decoder_factor
from .layers import Block
from .packing import PATCH
from .paths import flow_sigmas

MAX_TOKENS = 512

BLOCKS = (
    Block(
        "double_blocks.{}",
        "transformer_blocks.{}",
        {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn.proj": ("attn.to_out.0",),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn.proj": ("attn.to_add_out",),
            "img_mlp.0": ("ff.linear_in",),
            "img_mlp.2": ("ff.linear_out",),
            "txt_mlp.0": ("ff_context.linear_in",),
            "txt_mlp.2": ("ff_context.linear_out",),
        },
    ),
    Block(
        "single_blocks.{}",
        "single_transformer_blocks.{}",
        {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
    ),
)


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    length = min(MAX_TOKENS, getattr(pipeline.tokenizer, "model_max_length", MAX_TOKENS))
    sequence, _ = pipeline.encode_prompt(text, device, max_sequence_length=length)
    return {"sequence": sequence}  # [1, L, joint_attention_dim], filled up by the tokenizer


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of tokens [B, h · w, C]."""
    network, sequence = parts.network, conditions["sequence"]
    one = torch.arange(1)
    places = torch.cartesian_prod(one, torch.arange(size.height), torch.arange(size.width), one)  # [h · w, 4]
    words = torch.cartesian_prod(one, one, one, torch.arange(sequence.shape[1]))
    return network(
        hidden_states=x.to(parts.dtype),
        timestep=(sigma * 1000).to(parts.dtype) / 1000,  # rounded as Flux2Pipeline rounds it
        guidance=conditions.get("guidance"),
        encoder_hidden_states=sequence,
        txt_ids=words.to(x.device),
        img_ids=places.to(x.device),
        return_dict=False,
    )[0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    deviation = torch.sqrt(variance + vae.config.batch_norm_eps)
    latents = latents * deviation[:, None, None] + mean[:, None, None]
    return vae.decode(F.pixel_shuffle(latents, PATCH).to(vae.dtype), return_dict=False)[0]


FLUX_2_DEV = Architecture(
    label="FLUX.2 dev",
    pipelines=("Flux2Pipeline",),
    comfyui={"Flux2": "flux-2-dev"},
    comfyui_config={"guidance_embed": True},
    name=lambda config: "flux-2-dev",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: flow_sigmas(
        scheduler, steps, compute_empirical_mu(size.height * size.width, steps)
    ),
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 50,
    guidance=lambda config: Guidance("embedded", 4.0),
    factor=lambda vae: PATCH * decoder_factor(vae),
    pack=lambda latents: latents.flatten(2).transpose(1, 2),
    unpack=lambda x, h, w: x.transpose(1, 2).unflatten(2, (h, w)),
    decode=decode,
    alphas=False,
    ratios={"linear1": (1, 9), "linear2": (4, 1), "_mlp.0": (1, 6), "_mlp.2": (3, 1)},
)
FLUX_2_KLEIN = replace(
    FLUX_2_DEV,
    label="FLUX.2 klein",
    pipelines=("Flux2KleinPipeline",),
    comfyui={"Flux2": "flux-2-klein"},
    comfyui_config={"guidance_embed": False},
    name=lambda config: "flux-2-klein",
    steps=lambda config: 4 if config.get("is_distilled") else 50,
    guidance=lambda config: Guidance("none") if config.get("is_distilled") else Guidance("cfg", 4.0),
)
