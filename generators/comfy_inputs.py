# pyright: reportMissingImports=false
"""What a user wires into training, checked, and read for the LoRA's metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sample
import torch
from torch import Tensor

from ..distillation.errors import GeneratorError

log = logging.getLogger(__name__)


def trainable_model(model: Any) -> Any:
    if not model.is_dynamic():
        return model.clone()
    log.warning(
        "ComfyUI streams this model's weights on demand (dynamic VRAM), which training cannot follow. A second copy "
        "of the model is loaded into RAM for training; start ComfyUI with --disable-dynamic-vram to avoid that."
    )
    return model.clone(disable_dynamic=True)


def latent_shape(model: Any, latent: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one latent, [1, C, h, w] or [1, C, 1, h, w]."""
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        torch.zeros_like(latent["samples"][:1]),
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    wanted = model.get_model_object("latent_format").latent_channels
    given = latent["samples"].shape
    empty = torch.count_nonzero(latent["samples"]) == 0
    if samples.ndim not in (4, 5) or (samples.ndim == 5 and samples.shape[2] != 1):
        raise GeneratorError(
            f"Expected a LATENT of one image, [B, C, h, w], got {list(given)}. Use an Empty Latent node."
        )
    if samples.shape[1] != wanted or (given[1] != wanted and not empty):
        raise GeneratorError(
            f"Expected a LATENT of {wanted} channels for this MODEL, got {list(given)}. Use its Empty Latent."
        )
    return tuple(samples.shape)


def check_vae(model: Any, vae: Any) -> None:
    wanted = model.get_model_object("latent_format").latent_channels
    if getattr(vae, "first_stage_model", None) is None:
        raise GeneratorError("Expected a VAE, but this one holds no model: choose another file in its loader.")
    if vae.latent_channels != wanted:
        raise GeneratorError(
            f"The MODEL works on latents of {wanted} channels, but the VAE on {vae.latent_channels}. "
            "Load the VAE that belongs to the MODEL."
        )


def check_sigmas(sigmas: Tensor) -> Tensor:
    sigmas = sigmas.detach().float().cpu().clone()
    falling = sigmas.ndim == 1 and len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all())
    if not falling or not bool(torch.isfinite(sigmas).all()) or float(sigmas[-1]) < 0:
        raise GeneratorError(f"Expected at least two falling SIGMAS, the last one 0, got {sigmas.tolist()}.")
    return sigmas


def numbers(parameter: Tensor) -> Tensor:
    """What a hash can read of a parameter: the stored numbers of a quantised one."""
    return getattr(parameter, "_qdata", parameter)


def file_name(model: Any) -> str:
    """The name of the file that a core loader has read, else the class of the model."""
    arguments = (model.cached_patcher_init or (None, ()))[1]
    return Path(arguments[0]).stem if arguments and isinstance(arguments[0], str) else type(model.model).__name__


def architecture(model: Any) -> str:
    if type(model) is comfy.model_base.Flux:
        return "flux-1-dev" if model.diffusion_model.params.guidance_embed else "flux-1-schnell"
    return type(model).__name__.lower()
