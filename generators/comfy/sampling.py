# pyright: reportMissingImports=false
"""ComfyUI's own sampling code, one noise level at a time: model sampling, conditioning, guidance, CFG."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...comfy_host.borrowed import take_away_all_but
from ...core.errors import GeneratorError
from ...core.residency import Turns
from ..noise import draw_noise
from .batching import can_share, joined
from .visits import DECODER, NETWORK


def make_sigmas(model: Any, scheduler: str, steps: int) -> Tensor:
    """Noise levels [steps + 1], falling to 0, as KSampler makes them.

    Raises:
        GeneratorError: ComfyUI knows no such scheduler.
    """
    if scheduler not in comfy.samplers.SCHEDULER_NAMES:
        raise GeneratorError(f"Expected a scheduler out of {comfy.samplers.SCHEDULER_NAMES}, got {scheduler!r}.")
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).float().cpu()


@contextmanager
def loaded(
    model: Any, vaes: Sequence[Any], others: Sequence[Any] | None, conditionings: Sequence[Any], shape: Sequence[int]
) -> Iterator[None]:
    """While entered, the MODEL, what its conditionings need (ControlNets) and the VAEs are loaded, ready to sample.

    Args:
        others: further ModelPatchers; those of the same device stay loaded, wholly, beside them. None takes every
            other model away first.
        shape: of one latent.
    """
    beside = [patcher for patcher in others or () if patcher.load_device == model.load_device]
    decoders = [vae.patcher for vae in vaes]
    conds = {f"{i}": comfy.sampler_helpers.convert_cond(c) for i, c in enumerate(conditionings)}
    with torch.inference_mode():  # the weights are inference tensors; moving them elsewhere would fail
        if others is None:
            take_away_all_but([model, *decoders], model.load_device)
        _, _, helpers = comfy.sampler_helpers.prepare_sampling(model, list(shape), conds, model.model_options)
        memory = max(vae.memory_used_decode(tuple(shape), vae.vae_dtype) for vae in vaes)
        comfy.model_management.load_models_gpu(
            [model, *helpers, *decoders, *beside], memory_required=memory, force_full_load=bool(beside)
        )
    try:
        model.pre_run()
        yield
    finally:
        model.cleanup()
        comfy.sampler_helpers.cleanup_models(conds, helpers)


@contextmanager
def loaded_beside(model: Any, others: Sequence[Any] | None, conditionings: Sequence[Any]) -> Iterator[None]:
    """While entered, all that a MODEL needs is loaded but its own weights and the VAE's, which come by themselves.

    Args:
        others: further ModelPatchers; those of the same device are loaded, wholly; all else is taken away.
    """
    beside = [patcher for patcher in others or () if patcher.load_device == model.load_device]
    conds = {f"{i}": comfy.sampler_helpers.convert_cond(c) for i, c in enumerate(conditionings)}
    with torch.inference_mode():
        helpers, _ = comfy.sampler_helpers.get_additional_models(conds, model.model_dtype())
        helpers += comfy.sampler_helpers.get_additional_models_from_model_options(model.model_options)
        helpers += model.get_nested_additional_models() + model.model_patches_models()
        take_away_all_but([*helpers, *beside], model.load_device)
        if helpers or beside:
            comfy.model_management.load_models_gpu([*helpers, *beside], force_full_load=bool(beside))
    try:
        model.pre_run()
        yield
    finally:
        model.cleanup()
        comfy.sampler_helpers.cleanup_models(conds, helpers)


class Denoiser:
    """A `rollout.Denoiser` of one MODEL and its VAE, for several prompts.

    Make it, and call it, outside inference mode, while the model is `loaded`.

    Args:
        model: ModelPatcher.
        positives: one CONDITIONING per prompt.
        negative: CONDITIONING of classifier-free guidance, None where `cfg` is 1.
        shape: of one latent, [1, C, h, w] or [1, C, 1, h, w].
        sigmas: the sampler's noise levels [steps + 1], which some models look at.
        decode: latents [B, C, h, w] -> images.
        turns: of NETWORK and DECODER.
    """

    def __init__(
        self,
        model: Any,
        positives: Sequence[Any],
        negative: Any | None,
        cfg: float,
        shape: Sequence[int],
        sigmas: Tensor,
        decode: Callable[[Tensor], Tensor],
        turns: Turns,
    ) -> None:
        self.sigmas, self._decode, self._shape, self._turns = sigmas, decode, tuple(shape), turns
        turns.come(NETWORK)  # with which some models encode conditionings
        self.device = model.load_device
        self.sampling = model.get_model_object("model_sampling")
        options = comfy.model_patcher.create_model_options_clone(model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(model, {}, options)  # brings in the MODEL's wrappers
        comfy.samplers.cast_to_load_options(options, device=self.device, dtype=model.model_dtype())
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas.to(self.device)
        self._model, self._options = model, options
        self._guiders = [self._guider(p, negative, cfg, shape) for p in positives]
        self._kinds = _kinds(self._guiders)

    def _guider(self, positive: Any, negative: Any | None, cfg: float, shape: Sequence[int]) -> Any:
        guider = comfy.samplers.CFGGuider(self._model)
        conds = {"positive": _plain(positive)} | ({} if negative is None else {"negative": _plain(negative)})
        guider.inner_set_conds(conds)
        guider.set_cfg(cfg)
        guider.model_options = self._options
        guider.inner_model = self._model.model
        guider.conds = comfy.samplers.process_conds(
            self._model.model,
            torch.zeros(list(shape), device=self.device),
            {name: [dict(c) for c in rows] for name, rows in guider.original_conds.items()},
            self.device,
        )
        return guider

    def __call__(self, x: Tensor, sigma: Tensor, prompt_indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A forward pass for all prompts that can share one."""
        self._turns.come(NETWORK)
        clean: list[Tensor] = [x] * len(x)
        kinds = [self._kinds[index] for index in prompt_indices]
        for kind in dict.fromkeys(kinds):
            rows = [i for i, other in enumerate(kinds) if other == kind]
            guider = joined([self._guiders[prompt_indices[row]] for row in rows])
            estimate = guider(x[rows], sigma[rows], model_options=self._options, seed=0)
            for row, value in zip(rows, estimate, strict=True):
                clean[row] = value
        estimates = torch.stack(clean)
        return estimates, (x - estimates) / _like(sigma, x)

    def decoding_by(self, decode: Callable[[Tensor], Tensor]) -> Denoiser:
        """The same, with another way from latents to images."""
        other = copy.copy(self)
        other._decode = decode
        return other

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        _, channels, *frames, height, width = self._shape
        noise = draw_noise(seeds, channels, height, width).to(self.device)
        return noise.unsqueeze(2) if frames else noise

    def start(self, seeds: Sequence[int]) -> Tensor:
        """Where sampling starts from an empty latent: noise scaled to the first noise level."""
        self._turns.come(NETWORK)
        noise, sigma, highest = self._noise(seeds), float(self.sigmas[0]), float(self.sampling.sigma_max)
        full = sigma >= highest or abs(sigma - highest) < 1e-5 * sigma
        return self.sampling.noise_scaling(
            torch.tensor(sigma, device=self.device), noise, torch.zeros_like(noise), full
        )

    def renoise(self, clean: Tensor, seeds: Sequence[int], times: Sequence[float]) -> tuple[Tensor, Tensor]:
        sigma = torch.tensor([self.sigma_at(time) for time in times]).to(clean)
        return self.sampling.noise_scaling(_like(sigma, clean), self._noise(seeds), clean, False), sigma

    def finish(self, x: Tensor) -> Tensor:
        return self.sampling.inverse_noise_scaling(self.sigmas[-1].to(self.device), x)

    def decode(self, clean: Tensor) -> Tensor:
        self._turns.come(DECODER)
        image = self._decode(self._turns.before_backward(NETWORK, clean))
        return self._turns.before_backward(DECODER, image)

    def sigma_at(self, time: float) -> float:
        """The noise level of a flow-matching time, 1 = pure noise; of other models, that share of their schedule."""
        if isinstance(self.sampling, comfy.model_sampling.CONST):
            return time
        return min(float(self.sampling.percent_to_sigma(1 - time)), float(self.sampling.sigma_max))


def _kinds(guiders: Sequence[Any]) -> list[int]:
    """For each guider the number of the first one with which it can share a forward pass, which may be itself."""
    kinds: list[int] = []
    for number, guider in enumerate(guiders):
        firsts = dict.fromkeys(kinds)
        kinds.append(next((first for first in firsts if can_share(guiders[first], guider)), number))
    return kinds


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.ndim - 1))


def _plain(value: Any) -> Any:
    """A copy of a CONDITIONING whose tensors autograd accepts; models and hooks in it stay the same objects."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value) if type(value) in (list, tuple) else value
    return value
