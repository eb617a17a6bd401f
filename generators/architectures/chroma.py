"""Chroma: Flux schnell's blocks with one small network in place of their modulations, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size
from .flux import BLOCKS
from .packing import PATCH, pack, token_positions, unpack
from .paths import flow_sigmas, shift_by_size

MAX_TOKENS = 512  # of the T5 sequence


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    length = min(MAX_TOKENS, pipeline.tokenizer.model_max_length)
    sequence, _, mask, *_ = pipeline.encode_prompt(
        text, device=device, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"sequence": sequence, "mask": mask}  # [1, L, joint_attention_dim], [1, L]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of tokens [B, T, 64]."""
    network, text_mask = parts.network, conditions["mask"]
    # Numbers, which ChromaPipeline adds to the attention's scores, and so do we: text counts for more than padding.
    mask = torch.cat([text_mask, text_mask.new_ones(x.shape[:2])], dim=1)
    positions = token_positions(size.height, size.width).to(x)  # [T, 3]
    with _masked_checkpoints(network, mask):
        return network(
            hidden_states=x.to(parts.dtype),
            timestep=(sigma * 1000).to(parts.dtype) / 1000,  # rounded as ChromaPipeline rounds it
            encoder_hidden_states=conditions["sequence"],
            txt_ids=positions.new_zeros(conditions["sequence"].shape[1], 3),
            img_ids=positions,
            attention_mask=mask,
            return_dict=False,
        )[0]


@contextmanager
def _masked_checkpoints(network: Any, mask: Tensor) -> Iterator[None]:
    """With gradient checkpointing diffusers forgets the single blocks' mask; while entered, they get it."""
    if not network.gradient_checkpointing:
        yield
        return
    checkpoint = network._gradient_checkpointing_func

    def with_mask(block: Any, *inputs: Any) -> Any:
        return checkpoint(block, *inputs, mask) if len(inputs) == 3 else checkpoint(block, *inputs)

    network._gradient_checkpointing_func = with_mask
    try:
        yield
    finally:
        network._gradient_checkpointing_func = checkpoint


CHROMA = Architecture(
    label="Chroma",
    pipelines=("ChromaPipeline",),
    comfyui={"Chroma": "chroma"},
    name=lambda config: "chroma",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: flow_sigmas(scheduler, steps, shift_by_size(scheduler, size.tokens)),
    predict=predict,
    blocks=BLOCKS,
    steps=lambda config: 35,
    guidance=lambda config: Guidance("cfg", 5.0),
    channels=lambda config: config["in_channels"] // PATCH**2,
    patch=PATCH,
    pack=pack,
    unpack=unpack,
)
