# pyright: reportMissingImports=false
"""What a user wires into training, checked, and read for the LoRA's metadata."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import comfy.sample
import comfy.sampler_helpers
import comfy.sd
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.errors import GeneratorError
from ...core.protocols import PRESET
from ..architectures import ARCHITECTURES, Architecture

PROBES = (0.25, 0.5, 0.75)  # decoded values that no VAE clamps, whether its range is [0, 1] or [-1, 1]

log = logging.getLogger(__name__)

SECOND_COPY = (
    "ComfyUI streams this %s's weights on demand (dynamic VRAM), which training cannot follow, and %s. So a second "
    "copy of it is made in main memory for training."
)


def trainable_model(model: Any) -> Any:
    """A clone over the same weights, without what training has to leave out."""
    clone = model.clone()
    _leave_out_wrappers(clone)
    return clone


def resident_model(model: Any, reason: str) -> Any:
    """The MODEL, or a clone over a second copy of its weights where ComfyUI streams them; the reason is said."""
    if not model.is_dynamic():
        return model
    if model.cached_patcher_init is None:
        raise GeneratorError(
            f"ComfyUI streams this MODEL's weights (dynamic VRAM), and {reason}, so that they need a second copy for "
            "training, which its loader cannot make. Use one of ComfyUI's own loaders."
        )
    log.warning(SECOND_COPY, "MODEL", reason)
    return model.clone(disable_dynamic=True)


def _leave_out_wrappers(model: Any) -> None:
    """Takes out of our clone what belongs to whole sampling runs (caches of steps), and compiled networks.

    Training makes single steps, and its hooks do not reach into a compiled network. Other wrappers stay in force.
    """
    by_kind = model.wrappers
    keys = {key for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE) for key in by_kind.get(kind, {})}
    if "torch.compile" in by_kind.get(WrappersMP.APPLY_MODEL, {}):
        keys.add("torch.compile")
    for key in keys - {None}:
        log.warning(
            "Training leaves %r out, which has been applied to the MODEL: it does not work on single steps.", key
        )
        for kind in by_kind:
            model.remove_wrappers_with_key(kind, key)


def resident_vae(vae: Any, reason: str) -> Any:
    """The VAE itself, or a second copy where ComfyUI streams its weights; the reason is said."""
    if not vae.patcher.is_dynamic():
        return vae
    log.warning(SECOND_COPY, "VAE", reason)
    copy = comfy.sd.VAE(sd=vae.get_sd(), device=vae.device, dtype=vae.vae_dtype)
    copy.patcher = comfy.model_patcher.ModelPatcher(
        copy.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device
    )
    return copy


def check_conditionings(conditionings: Sequence[Any]) -> None:
    if any(comfy.sampler_helpers.cond_has_hooks(conditioning) for conditioning in conditionings):
        raise GeneratorError(
            "A CONDITIONING carries hooks (such as a scheduled LoRA), which change the weights between training's "
            "steps. Apply the LoRA to the MODEL instead."
        )


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


def output_map(vae: Any) -> tuple[float, float]:
    """Scale and shift from what the VAE's network decodes to pixels in [0, 1], without the clamp at the end.

    Most networks decode to [-1, 1]: (0.5, 0.5). Some, such as TAEHV, decode to pixels: (1, 0).

    Raises:
        GeneratorError: the VAE makes its pixels otherwise than by scaling, shifting and clamping.
    """
    low, middle, high = (_pixel_of(vae, value) for value in PROBES)
    scale = (high - low) / (PROBES[2] - PROBES[0])
    straight = abs(low + high - 2 * middle) <= 1e-5 * max(1.0, abs(scale))
    if not straight or scale == 0:
        raise GeneratorError(
            "Expected a VAE that makes pixels of its network's output by scaling and shifting, but this one makes "
            f"{low:g}, {middle:g} and {high:g} of {PROBES[0]:g}, {PROBES[1]:g} and {PROBES[2]:g}. Use another VAE for "
            "this MODEL, such as the one that was published with it."
        )
    return scale, middle - scale * PROBES[1]


def _pixel_of(vae: Any, value: float) -> float:
    """What the VAE makes of a decoded value; its own function may work in place."""
    shape = (1, vae.output_channels, *[1] * vae.latent_dim)
    return float(vae.process_output(torch.full(shape, value, dtype=torch.float32)).float().mean())


def check_sigmas(sigmas: Tensor) -> Tensor:
    sigmas = sigmas.detach().float().cpu().clone()
    falling = sigmas.ndim == 1 and len(sigmas) >= 2 and bool((sigmas[1:] < sigmas[:-1]).all())
    if not falling or not bool(torch.isfinite(sigmas).all()) or float(sigmas[-1]) < 0:
        raise GeneratorError(f"Expected at least two falling SIGMAS, the last one 0, got {sigmas.tolist()}.")
    return sigmas


def known_architecture(model: Any) -> Architecture | None:
    """The architecture of a ComfyUI model, by its configuration and that one's class; None where it is in no table."""
    name, config = type(model.model_config).__name__, model.model_config.unet_config
    for architecture in ARCHITECTURES:
        wanted = architecture.comfyui_config.items()
        if name in architecture.comfyui and all(config.get(key) == value for key, value in wanted):
            return architecture
    return None


def architecture_name(model: Any) -> str:
    """The name of a ComfyUI model's architecture, as in a LoRA's metadata; in no table, that of its class."""
    known = known_architecture(model)
    return known.comfyui[type(model.model_config).__name__] if known else type(model).__name__.lower()


def preset_architecture(patcher: Any) -> str:
    """The name under which a MODEL's preset is found: what its loader attached to it, else the architecture."""
    return patcher.get_attachment(PRESET) or architecture_name(patcher.model)
