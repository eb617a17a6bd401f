"""Stage 4: the trained models in standard formats: a diffusers FluxPipeline folder and a transformers VLM folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline

from ..tokenizer import prompt_tokenizer
from .critic import CriticWithHeads
from .generator import TextToVelocity


def export(folder: Path, vae: AutoencoderTiny, generator: TextToVelocity, critic: CriticWithHeads) -> None:
    """Writes `pipeline/` and `critic/` below `folder`, weights in float16."""

    def half(model: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(model).to(torch.float16)

    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=half(vae),
        text_encoder=half(generator.clip),
        tokenizer=prompt_tokenizer(),
        text_encoder_2=half(generator.t5),
        tokenizer_2=prompt_tokenizer(),
        transformer=half(generator.transformer),
    )
    pipeline.save_pretrained(folder / "pipeline")
    half(critic.model).save_pretrained(folder / "critic")
    critic.processor.save_pretrained(folder / "critic")
