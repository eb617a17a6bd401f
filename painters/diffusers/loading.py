"""Makes a FluxPainter from a pipeline, in memory or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FluxKontextPipeline, FluxPipeline

from ...core.errors import GeneratorError
from .flux import FluxPainter, FluxSettings

PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"


def load_kontext(
    source: Any, device: str | None = None, dtype: torch.dtype | None = None, **settings: Any
) -> FluxPainter:
    """A painter that follows instructions, its own latents as reference: Flux Kontext, or a Flux that has learnt it.

    Args:
        source: a folder in diffusers' layout, a Hugging Face id, or a FluxKontextPipeline or FluxPipeline, whose parts
            are shared.
        device, dtype: where the parts are moved; None leaves them as they are.
        settings: of `FluxSettings`.

    Raises:
        GeneratorError: `source` is no Flux, a part is missing, or a setting is out of range.
    """
    return _load(FluxKontextPipeline, source, device, dtype, settings)


def load_inpaint(
    source: Any, device: str | None = None, dtype: torch.dtype | None = None, **settings: Any
) -> FluxPainter:
    """A painter that paints regions anew, with any Flux for text to image; otherwise as `load_kontext`."""
    return _load(FluxPipeline, source, device, dtype, {"guidance": 3.5, **settings})


def _load(
    kind: Any, source: Any, device: str | None, dtype: torch.dtype | None, settings: dict[str, Any]
) -> FluxPainter:
    made = FluxSettings(**settings)  # before the weights, which may take minutes
    if isinstance(source, str | Path):
        options = {} if dtype is None else {DTYPE: dtype}
        source = kind.from_pretrained(str(source), use_safetensors=True, **options)
    parts = {name: getattr(source, name, None) for name in PARTS}
    if missing := [name for name, part in parts.items() if part is None]:
        raise GeneratorError(
            f"Expected a whole Flux pipeline, got a {type(source).__name__} without {', '.join(missing)}. Load it too."
        )
    pipeline = kind(**parts)
    pipeline.register_to_config(_name_or_path=source.config.get("_name_or_path"))
    pipeline.set_progress_bar_config(disable=True)
    if device is not None or dtype is not None:
        pipeline.to(device=device, dtype=dtype)
    return FluxPainter(pipeline, made)
