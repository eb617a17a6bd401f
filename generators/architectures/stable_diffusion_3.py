"""Stable Diffusion 3 and 3.5: a transformer for which text and picture are one sequence, with classifier-free guidance.

The table of layers maps Stability AI's own names to diffusers' (diffusers `convert_sd3_to_diffusers.py`). It leaves out
the text's modulations: of the last block, diffusers has the two halves of their output in the other order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size
from .layers import Block
from .packing import PATCH
from .paths import own_flow_sigmas, shift_by_size

MAX_TOKENS = 256  # of the T5 part of the sequence

BLOCKS = (
    Block(
        "joint_blocks.{}",
        "transformer_blocks.{}",
        {
            "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "x_block.attn.proj": ("attn.to_out.0",),
            "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # of 3.5 medium
            "x_block.attn2.proj": ("attn2.to_out.0",),
            "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "context_block.attn.proj": ("attn.to_add_out",),
            "x_block.mlp.fc1": ("ff.net.0.proj",),
            "x_block.mlp.fc2": ("ff.net.2",),
            "context_block.mlp.fc1": ("ff_context.net.0.proj",),
            "context_block.mlp.fc2": ("ff_context.net.2",),
            "x_block.adaLN_modulation.1": ("norm1.linear",),
        },
    ),
)


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    length = min(MAX_TOKENS, pipeline.tokenizer_3.model_max_length)
    sequence, _, pooled, _ = pipeline.encode_prompt(
        text, None, None, device=device, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"sequence": sequence, "pooled": pooled}  # [1, L, joint_attention_dim], [1, pooled_projection_dim]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of latents [B, C, h, w]."""
    network = parts.network
    return network(
        hidden_states=x.to(parts.dtype),
        timestep=sigma * 1000,
        encoder_hidden_states=conditions["sequence"],
        pooled_projections=conditions["pooled"],
        return_dict=False,
    )[0]


STABLE_DIFFUSION_3 = Architecture(
    label="Stable Diffusion 3",
    pipelines=("StableDiffusion3Pipeline",),
    comfyui={"SD3": "sd-3"},
    name=lambda config: "sd-3",
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: own_flow_sigmas(scheduler, steps, shift_by_size(scheduler, size.tokens)),
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 28,
    guidance=lambda config: Guidance("cfg", 7.0),
    patch=PATCH,
    alphas=False,
)
