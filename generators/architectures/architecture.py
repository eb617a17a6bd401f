"""What is particular to one family of image generators: all that both hosts need to know of it, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .layers import Block, Host
from .paths import FLOW, Path

Config = Mapping[str, Any]  # of the network in diffusers, and what the pipeline's own configuration adds
Conditions = dict[str, Tensor]  # all that the network sees of prompts, a row for each


@dataclass(frozen=True)
class Guidance:
    """How a model is guided to its prompt.

    "embedded": the network takes the strength as an input. "cfg": classifier-free guidance, a second pass for an empty
    prompt. "none": guidance is distilled into the weights.
    """

    kind: Literal["embedded", "cfg", "none"]
    default: float = 1.0
    off: float = 1.0  # the strength of classifier-free guidance up to which no second pass is made


@dataclass(frozen=True)
class Size:
    """Of one latent."""

    channels: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Of models whose tokens are 2 × 2 latent pixels."""
        return self.height * self.width // 4


REFERENCE = "reference"  # the condition that is a picture beside the network's own


@dataclass(frozen=True)
class Parts:
    """What of a pipeline makes pictures of encoded prompts."""

    network: Any
    vae: Any
    scheduler: Any
    config: Config
    dtype: torch.dtype  # that the network computes in; its first weights may be of few bits, or a LoRA's


def decode_scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> pictures [B, 3, H, W] in [-1, 1], scaled and shifted as the VAE's configuration says."""
    config = vae.config
    shifted = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    return vae.decode(shifted.to(vae.dtype), return_dict=False)[0]


def encode_scaled(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] -> their likeliest latents, scaled as `decode_scaled` takes them."""
    encoded = vae.encode(pictures.to(vae.dtype))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def decoder_factor(vae: Any) -> int:
    """Pixels to a latent pixel and side."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def plain_cfg(with_prompt: Tensor, without: Tensor, strength: float) -> Tensor:
    """Ho and Salimans 2022, equation 6 in the form that pipelines use."""
    return without + strength * (with_prompt - without)


def as_encoded(conditions: Conditions, config: Config) -> Conditions:
    return conditions


def same(latents: Tensor) -> Tensor:
    return latents


def same_layout(x: Tensor, h: int, w: int) -> Tensor:
    return x


@dataclass(frozen=True)
class Architecture:
    """One family of image generators.

    Args:
        label: what messages call it.
        pipelines: class names in diffusers.
        comfyui: names that the model has in ComfyUI (class of its `supported_models` entry), with the names of ours.
        name: of a configuration, such as "flux-1-dev", as in a LoRA's metadata and in `PRESETS`.
        encoders: the pipeline's parts that read prompts; they leave after encoding.
        encode: pipeline, one prompt, configuration, device -> conditions, one row.
        sigmas: scheduler, steps, size -> noise levels [steps + 1].
        predict: parts, latents in the network's layout, noise levels [B], conditions [B, …], size -> dx/dσ.
        blocks: the layers that a LoRA may change, with their names in both hosts.
        steps: default number of sampler steps.
        guidance: of a configuration.
        network: the pipeline's part that is trained; also the first word of a LoRA's key names.
        path: how latents lie between picture and noise.
        channels: of a latent.
        factor: pixels to a latent pixel and side.
        patch: latent pixels to a token and side, by which a latent's sides are divided.
        pack, unpack: latents [B, C, h, w] into the network's layout, and back.
        decode: VAE, latents [B, C, h, w] -> pictures in [-1, 1].
        refer: VAE, pictures in [-1, 1] -> latents [B, C, h, w] for `predict`, as the condition REFERENCE; None
            where the network reads no picture beside its own.
        combine: classifier-free guidance.
        empty: what its second pass takes for the empty prompt, out of that prompt's conditions.
        kohya: the host whose layer names kohya's trainers write, with underscores.
        alphas: whether diffusers reads `.alpha` beside a transformer's LoRA in PEFT's names.
        comfyui_config: what the model's configuration in ComfyUI says, where architectures share a class there.
        ratios: inputs to outputs of layers by the ends of their names in ComfyUI, where another architecture has layers
            of the same names.
    """

    label: str
    pipelines: tuple[str, ...]
    comfyui: Mapping[str, str]
    name: Callable[[Config], str]
    encoders: tuple[str, ...]
    encode: Callable[[Any, str, Config, torch.device], Conditions]
    sigmas: Callable[[Any, int, Size], Tensor]
    predict: Callable[[Parts, Tensor, Tensor, Conditions, Size], Tensor]
    blocks: tuple[Block, ...]
    steps: Callable[[Config], int]
    guidance: Callable[[Config], Guidance]
    network: Literal["transformer", "unet"] = "transformer"
    path: Path = FLOW
    channels: Callable[[Config], int] = lambda config: config["in_channels"]
    factor: Callable[[Any], int] = decoder_factor
    patch: int = 1
    pack: Callable[[Tensor], Tensor] = same
    unpack: Callable[[Tensor, int, int], Tensor] = same_layout
    decode: Callable[[Any, Tensor], Tensor] = decode_scaled
    refer: Callable[[Any, Tensor], Tensor] | None = None
    combine: Callable[[Tensor, Tensor, float], Tensor] = plain_cfg
    empty: Callable[[Conditions, Config], Conditions] = as_encoded
    kohya: Host = "comfyui"
    alphas: bool = True
    comfyui_config: Config = field(default_factory=dict)
    ratios: Mapping[str, tuple[int, int]] = field(default_factory=dict)
