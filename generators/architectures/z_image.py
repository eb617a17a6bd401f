"""Z-Image and Z-Image-Turbo: one stream of picture and prompt tokens, refined apart before they meet.

The published configurations of the two are the same, so guidance is off, as Turbo wants it, unless it is asked for.
The table of layers maps Tongyi's own names to diffusers' (diffusers `convert_z_image_to_diffusers`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, Conditions, Config, Guidance, Parts, Size
from .layers import Block, same_names
from .packing import PATCH
from .paths import flow_sigmas, shift_by_size

LAYERS = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    **same_names("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
}


def encode(pipeline: Any, text: str, config: Config, device: torch.device) -> Conditions:
    (sequence,), _ = pipeline.encode_prompt(text, device, do_classifier_free_guidance=False)
    mask = torch.ones(1, len(sequence), dtype=torch.bool, device=device)
    return {"sequence": sequence[None], "mask": mask}  # [1, L, cap_feat_dim], [1, L]


def predict(parts: Parts, x: Tensor, sigma: Tensor, conditions: Conditions, size: Size) -> Tensor:
    """Velocities of latents [B, C, h, w]; the network has its time rising to the picture, and the other sign."""
    lengths = conditions["mask"].sum(dim=1).tolist()
    found = parts.network(
        list(x.to(parts.dtype).unsqueeze(2)),  # [C, 1, h, w] each
        (1000 - sigma * 1000) / 1000,  # rounded as ZImagePipeline rounds it
        [row[:length] for row, length in zip(conditions["sequence"], lengths, strict=True)],
        return_dict=False,
    )[0]
    return -torch.stack([row.float() for row in found]).squeeze(2)


def combine(with_prompt: Tensor, without: Tensor, strength: float) -> Tensor:
    """ZImagePipeline's: a strength of 0 is no guidance."""
    return with_prompt + strength * (with_prompt - without)


Z_IMAGE = Architecture(
    label="Z-Image",
    pipelines=("ZImagePipeline",),
    comfyui={"ZImage": "z-image"},
    name=lambda config: "z-image",
    encoders=("text_encoder", "tokenizer"),
    encode=encode,
    sigmas=lambda scheduler, steps, size: flow_sigmas(scheduler, steps, shift_by_size(scheduler, size.tokens)),
    predict=predict,
    blocks=tuple(Block(name, name, LAYERS) for name in ("noise_refiner.{}", "context_refiner.{}", "layers.{}")),
    steps=lambda config: 8,
    guidance=lambda config: Guidance("cfg", 0.0, off=0.0),
    patch=PATCH,
    combine=combine,
    alphas=False,
)
