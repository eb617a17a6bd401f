"""A tiny decoder (TAESD, Ollin Boer Bohan) in place of the VAE where pictures are made for their gradient only.

It takes latents as the network has them, unscaled, and comes near the pictures of the VAE that it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError

from ...core.errors import GeneratorError
from ..architectures.architecture import Architecture, Parts, decode_scaled
from .sharing import share_weights

FAMILIES = "taesd for SD 1.x, taesdxl for SDXL, taesd3 for SD 3, taef1 for Flux.1, Chroma and Z-Image"


def open_tiny_decoder(source: Any, download: bool = False) -> AutoencoderTiny:
    """The decoder itself, or that of a folder in diffusers' layout or a Hugging Face id.

    Raises:
        GeneratorError: it is none, or cannot be loaded.
    """
    if isinstance(source, AutoencoderTiny):
        return source
    if not isinstance(source, str | Path):
        raise GeneratorError(f"Expected a tiny decoder as a folder or an AutoencoderTiny, got {type(source).__name__}.")
    path = Path(source).expanduser()
    name, hub = str(path if path.exists() else source), {"local_files_only": not download}
    try:
        kind = AutoencoderTiny.load_config(name, **hub).get("_class_name")  # type: ignore[union-attr]
        if kind != "AutoencoderTiny":
            raise GeneratorError(
                f"Expected the folder of an AutoencoderTiny ({FAMILIES}), but {source} is that of {kind}."
            )
        return AutoencoderTiny.from_pretrained(name, use_safetensors=True, **hub)
    except (OSError, ValueError, SafetensorError) as error:
        raise GeneratorError(
            f"Could not load a tiny decoder from {source}: {error} Expected a folder with config.json and "
            f"diffusion_pytorch_model.safetensors ({FAMILIES})."
        ) from error


def fitted(decoder: AutoencoderTiny, architecture: Architecture, parts: Parts, dtype: torch.dtype) -> AutoencoderTiny:
    """The decoder for a generator of these parts, where its VAE lies; the one given is left as it is.

    Raises:
        GeneratorError: it does not fit the architecture's latents.
    """
    if architecture.decode is not decode_scaled:
        raise GeneratorError(
            f"Expected no tiny decoder for {architecture.label}: diffusers has none for its latents. Leave it out."
        )
    config: Any = decoder.config
    found, wanted = config.latent_channels, architecture.channels(parts.config)
    if found != wanted:
        raise GeneratorError(
            f"{architecture.label} works on latents of {wanted} channels, but the tiny decoder on {found}: the "
            f"channels do not fit. Use the one of its family ({FAMILIES})."
        )
    pixels = config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    if pixels != architecture.factor(parts.vae):
        raise GeneratorError(
            f"Expected a tiny decoder that makes {architecture.factor(parts.vae)} pixels a side of each latent pixel, "
            f"as the VAE of {architecture.label} does, got one that makes {pixels}. Use the one of its family "
            f"({FAMILIES})."
        )
    home = next(parts.vae.parameters()).device
    return share_weights(decoder, home, dtype)
