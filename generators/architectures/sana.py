"""Sana: linear attention, a feed-forward of convolutions, latents of a 32nd of the picture, classifier-free guidance.

Its own sampler is a DPM-Solver: its noise levels are taken, with Euler's steps between them, as everywhere. ComfyUI's
core has no Sana; the native names are those of its authors (NVlabs/Sana, diffusers `convert_sana_to_diffusers.py`).
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size
from .layers import Block
from .paths import Flow

BLOCKS = (
    Block(
        "blocks.{}",
        "transformer_blocks.{}",
        {
            "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
            "attn.proj": ("attn1.to_out.0",),
            "cross_attn.q_linear": ("attn2.to_q",),
            "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
            "cross_attn.proj": ("attn2.to_out.0",),
            "mlp.inverted_conv.conv": ("ff.conv_inverted",),
            "mlp.depth_conv.conv": ("ff.conv_depth",),  # channel by channel, which no LoRA of usual rank can change
            "mlp.point_conv.conv": ("ff.conv_point",),
        },
    ),
)


class SolverFlow(Flow):
    """A flow whose own sampler may be a DPM-Solver or the like with a flow's noise levels."""

    def own_scheduler(self, scheduler: Any) -> Any:
        if getattr(scheduler, "config", {}).get("use_flow_sigmas"):
            return copy.deepcopy(scheduler)
        return super().own_scheduler(scheduler)


def sigmas(scheduler: Any, steps: int, size: Size) -> Tensor:
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device="cpu")
    return torch.as_tensor(scheduler.sigmas).float()


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    """With the pipeline's own instruction before the prompt; the empty one of guidance stands alone."""
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    sequence, mask, _, _ = pipeline.encode_prompt(
        text, False, device=device, complex_human_instruction=instruction if text else None
    )
    return {"sequence": sequence, "mask": mask}  # [1, 300, caption_channels], [1, 300]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of latents [B, C, h, w]."""
    network = parts.network
    velocity = network(
        x.to(parts.dtype),
        encoder_hidden_states=conditions["sequence"],
        encoder_attention_mask=conditions["mask"],
        timestep=sigma * 1000 * parts.config["timestep_scale"],
        return_dict=False,
    )[0]
    return velocity[:, : size.channels]  # without the variance that some were trained to give as well


SANA = Architecture(
    label="Sana",
    pipelines=("SanaPipeline",),
    comfyui={},
    name=lambda config: "sana",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=sigmas,
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 20,
    guidance=lambda config: Guidance("cfg", 4.5),
    path=SolverFlow(),
    factor=lambda vae: 2 ** (len(vae.config.encoder_block_out_channels) - 1),
    alphas=False,
)
