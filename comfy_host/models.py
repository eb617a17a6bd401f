# pyright: reportMissingImports=false
"""What a MODEL and a VAE of ComfyUI are, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import GeneratorError


def check_vae(model: Any, vae: Any) -> None:
    wanted = model.get_model_object("latent_format").latent_channels
    if getattr(vae, "first_stage_model", None) is None:
        raise GeneratorError("Expected a VAE, but this one holds no model: choose another file in its loader.")
    if vae.latent_channels != wanted:
        raise GeneratorError(
            f"The MODEL works on latents of {wanted} channels, but the VAE on {vae.latent_channels}. "
            "Load the VAE that belongs to the MODEL."
        )


def pixels_per_latent(model: Any, vae: Any) -> int:
    """Pixels along a side for each of the latent's. (The VAE of FLUX.2's taef2 says 8, but makes 16.)"""
    known = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", None)
    return int(known or vae.spacial_compression_decode())


def base_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The network's weights without the user's LoRAs, loaded or not; of quantised ones the stored numbers."""
    for name, parameter in model.model.diffusion_model.named_parameters():
        backup = model.backup.get(f"diffusion_model.{name}")  # what ComfyUI puts back when it takes LoRAs out
        weight = parameter if backup is None else backup.weight
        yield name, getattr(weight, "_qdata", weight)


def file_name(model: Any) -> str:
    """The name of the file that a core loader has read, else the class of the model."""
    arguments = (model.cached_patcher_init or (None, ()))[1]
    return Path(arguments[0]).stem if arguments and isinstance(arguments[0], str) else type(model.model).__name__
