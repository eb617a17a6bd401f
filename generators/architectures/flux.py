"""Flux.1 schnell, dev, and Kontext, which is shown a picture beside its own.

The table of layers maps Black Forest Labs' own names to diffusers' (black-forest-labs/flux `modules/layers.py`,
diffusers `convert_flux_to_diffusers.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import REFERENCE, Architecture, Conditions, Config, Guidance, Parts, Size, encode_scaled
from .layers import Block
from .packing import PATCH, pack, token_positions, unpack
from .paths import flow_sigmas, shift_by_size

MAX_TOKENS = {False: 256, True: 512}  # of the T5 sequence, by guidance_embeds: schnell, dev

BLOCKS = (
    Block(
        "double_blocks.{}",
        "transformer_blocks.{}",
        {
            "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn.proj": ("attn.to_out.0",),
            "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn.proj": ("attn.to_add_out",),
            "img_mlp.0": ("ff.net.0.proj",),
            "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",),
            "txt_mlp.2": ("ff_context.net.2",),
            "img_mod.lin": ("norm1.linear",),
            "txt_mod.lin": ("norm1_context.linear",),
        },
    ),
    Block(
        "single_blocks.{}",
        "single_transformer_blocks.{}",
        {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation.lin": ("norm.linear",),
        },
    ),
)


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    length = min(MAX_TOKENS[bool(config["guidance_embeds"])], pipeline.tokenizer_2.model_max_length)
    sequence, pooled, _ = pipeline.encode_prompt(text, device=device, max_sequence_length=length)
    return {"sequence": sequence, "pooled": pooled}  # [1, L, joint_attention_dim], [1, pooled_projection_dim]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of tokens [B, T, 64]; those of a reference follow, and differ in the first of their positions."""
    network, tokens = parts.network, x
    positions = token_positions(size.height, size.width).to(x)  # [T, 3]
    if (reference := conditions.get(REFERENCE)) is not None:  # [B, C, h, w]
        beside = token_positions(*reference.shape[-2:]).to(x)
        beside[:, 0] = 1
        tokens, positions = torch.cat([x, pack(reference).to(x)], dim=1), torch.cat([positions, beside])
    return network(
        hidden_states=tokens.to(parts.dtype),
        timestep=(sigma * 1000).to(parts.dtype) / 1000,  # rounded as FluxPipeline rounds it
        guidance=conditions.get("guidance"),
        pooled_projections=conditions["pooled"],
        encoder_hidden_states=conditions["sequence"],
        txt_ids=positions.new_zeros(conditions["sequence"].shape[1], 3),
        img_ids=positions,
        return_dict=False,
    )[0][:, : x.shape[1]]


FLUX = Architecture(
    label="Flux.1",
    pipelines=("FluxPipeline", "FluxKontextPipeline"),
    comfyui={"Flux": "flux-1-dev", "FluxSchnell": "flux-1-schnell"},
    name=lambda config: "flux-1-dev" if config["guidance_embeds"] else "flux-1-schnell",
    encoders=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: flow_sigmas(scheduler, steps, shift_by_size(scheduler, size.tokens)),
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 28 if config["guidance_embeds"] else 4,
    guidance=lambda config: Guidance("embedded", 3.5) if config["guidance_embeds"] else Guidance("none"),
    channels=lambda config: config["in_channels"] // PATCH**2,
    patch=PATCH,
    pack=pack,
    unpack=unpack,
    refer=encode_scaled,
)
