"""Makes a FluxGenerator from a FluxPipeline, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from ...core.errors import GeneratorError
from ..settings import GeneratorSettings
from .generator import FluxGenerator, FluxPrompts
from .sharing import share_weights

ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"
MAX_TOKENS = {False: 256, True: 512}  # of the T5 sequence, by guidance_embeds: schnell, dev


def from_pipeline(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    device: torch.device | None,
    dtype: torch.dtype | None,
    settings: GeneratorSettings,
) -> FluxGenerator:
    """A generator that shares the pipeline's weights and leaves the pipeline as it is.

    `device` and `dtype` None: the transformer's own. Others make a copy of the weights, for training only.

    Raises:
        GeneratorError: a text encoder is missing, or the pipeline has offloading hooks.
    """
    missing = [name for name in (*ENCODERS, "transformer", "vae") if getattr(pipeline, name, None) is None]
    if missing:
        raise GeneratorError(f"Expected a whole FluxPipeline, but its {', '.join(missing)} is missing. Load it too.")
    place: torch.device = device or pipeline.transformer.device
    home = torch.device("cpu") if settings.offload else place
    transformer, vae = (share_weights(part, home, dtype or part.dtype) for part in (pipeline.transformer, pipeline.vae))
    encoded = encode_prompts(pipeline, prompts, bool(transformer.config.guidance_embeds), place)
    name = Path(str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)).name
    return FluxGenerator(transformer, vae, pipeline.scheduler, encoded, name, settings, place)


def from_pretrained(
    source: str,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    settings: GeneratorSettings,
    **hub: Any,
) -> FluxGenerator:
    """A generator from a folder in diffusers' layout, or a Hugging Face id with what `hub` passes to diffusers.

    The text encoders are loaded, used and freed before the transformer is loaded, so the two never share memory.
    """
    config: Any = FluxTransformer2DModel.load_config(source, subfolder="transformer", **hub)
    options = {DTYPE: dtype, "use_safetensors": True, **hub}  # pickled weights can run code
    encoders = FluxPipeline.from_pretrained(source, transformer=None, vae=None, **options)
    encoded = encode_prompts(encoders, prompts, bool(config["guidance_embeds"]), device)
    del encoders
    parts = FluxPipeline.from_pretrained(source, **dict.fromkeys(ENCODERS), **options)
    home = torch.device("cpu") if settings.offload else device
    transformer, vae = (part.requires_grad_(False).to(home).eval() for part in (parts.transformer, parts.vae))
    return FluxGenerator(transformer, vae, parts.scheduler, encoded, Path(source).name, settings, device)


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str], is_guided: bool, device: torch.device) -> FluxPrompts:
    """T5 sequences and CLIP vectors on `device`, by the pipeline's own encoders, one prompt at a time."""
    length = min(MAX_TOKENS[is_guided], pipeline.tokenizer_2.model_max_length)
    with _visiting(pipeline, device):
        encoded = [pipeline.encode_prompt(text, device=device, max_sequence_length=length) for text in prompts]
    sequence, pooled = (torch.cat([item[part] for item in encoded]) for part in (0, 1))  # [P, L, D], [P, D]
    return FluxPrompts(tuple(prompts), sequence, pooled)


@contextmanager
def _visiting(pipeline: Any, device: torch.device) -> Iterator[None]:
    """The text encoders are on `device` while entered, and back home afterwards."""
    homes = [(encoder, encoder.device) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    try:
        for encoder, home in homes:
            if home != device:
                encoder.to(device)
        yield
    finally:
        for encoder, home in homes:
            if encoder.device != home:
                encoder.to(home)
