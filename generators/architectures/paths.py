"""How a model's latents lie between a picture and noise, and the noise levels of its sampler."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ...core.errors import GeneratorError


class Path(Protocol):
    """Latents x at noise level σ, see `rollout.py`; σ of a batch has the shape of x with ones behind the batch."""

    def own_scheduler(self, scheduler: Any) -> Any:
        """A scheduler of our own that makes the noise levels; GeneratorError if this one's model is of another kind."""
        ...

    def start(self, scheduler: Any, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def sigma_at(self, scheduler: Any, time: Tensor) -> Tensor:
        """Noise levels of flow-matching times in (0, 1]; of a diffusion model, that share of its schedule."""
        ...


class Flow:
    """Rectified flow: x = (1 − σ)·x₀ + σ·ε, the network predicts the velocity ε − x₀."""

    def own_scheduler(self, scheduler: Any) -> Any:
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("stochastic_sampling"):
            raise GeneratorError(
                "Expected the model's own sampler, FlowMatchEulerDiscreteScheduler without stochastic_sampling, got "
                f"{type(scheduler).__name__}. Set pipeline.scheduler to it."
            )
        return copy.deepcopy(scheduler)

    def start(self, scheduler: Any, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(clean, noise, sigma)

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def sigma_at(self, scheduler: Any, time: Tensor) -> Tensor:
        return time


class Diffusion:
    """A diffusion model in Karras' coordinates: x = x₀ + σ·ε, and the network sees x / √(1 + σ²), as it was trained.

    DDIM without noise is Euler's method in these coordinates (Song et al. 2021, equation 14).
    """

    def own_scheduler(self, scheduler: Any) -> Any:
        kind = EulerDiscreteScheduler if isinstance(scheduler, EulerDiscreteScheduler) else DDIMScheduler
        config = dict(getattr(scheduler, "config", {}))
        if "beta_schedule" not in config:
            raise GeneratorError(
                f"Expected a diffusion model's scheduler, such as DDIMScheduler, got {type(scheduler).__name__}. Set "
                "pipeline.scheduler to it."
            )
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise GeneratorError(
                f"Expected a model that predicts noise (epsilon), got prediction type {config['prediction_type']!r}."
            )
        return kind.from_config(config)

    def start(self, scheduler: Any, noise: Tensor, sigma: Tensor) -> Tensor:
        euler = isinstance(scheduler, EulerDiscreteScheduler)
        if euler and scheduler.config["timestep_spacing"] in ("linspace", "trailing"):
            return noise * sigma  # as this scheduler starts where its first timestep is the last one of training
        return noise * torch.sqrt(1 + sigma**2)

    def mix(self, clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return clean + sigma * noise

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / torch.sqrt(1 + sigma**2)  # nothing where σ ends at 0; DDIM may end above

    def sigma_at(self, scheduler: Any, time: Tensor) -> Tensor:
        table = train_sigmas(scheduler)
        return table[(time.cpu() * (len(table) - 1)).round().long()].to(time)


FLOW, DIFFUSION = Flow(), Diffusion()


def train_sigmas(scheduler: Any) -> Tensor:
    """The noise level of each timestep that a diffusion model was trained on, rising, [T] float32."""
    alphas = scheduler.alphas_cumprod.double()
    return torch.sqrt((1 - alphas) / alphas).float()


def timestep_of(scheduler: Any, sigma: Tensor) -> Tensor:
    """Timesteps [B] of noise levels [B], float32; between two that the model was trained on, linear in log σ."""
    table = train_sigmas(scheduler).to(sigma).log()
    value = sigma.log().clamp(table[0], table[-1])
    high = torch.searchsorted(table, value).clamp(1, len(table) - 1)
    low = high - 1
    return low + (value - table[low]) / (table[high] - table[low])


def diffusion_sigmas(scheduler: Any, steps: int) -> Tensor:
    """Noise levels [steps + 1] of DDIM or Euler as the scheduler's own configuration spaces them."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device="cpu")
    if isinstance(scheduler, EulerDiscreteScheduler):
        return torch.as_tensor(scheduler.sigmas).float()
    table = train_sigmas(scheduler)
    final = torch.sqrt(1 / scheduler.final_alpha_cumprod.double() - 1).float()
    return torch.cat([table[torch.as_tensor(scheduler.timesteps)], final[None]])


def flow_sigmas(scheduler: Any, steps: int, mu: float | None = None) -> Tensor:
    """Noise levels [steps + 1] from 1 to 0, float32, as diffusers' flow pipelines make them, shifted by `mu`."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu, device="cpu")
    return torch.as_tensor(scheduler.sigmas)


def own_flow_sigmas(scheduler: Any, steps: int, mu: float | None = None) -> Tensor:
    """Noise levels [steps + 1] from about 1 to 0, float32, in the scheduler's own spacing, shifted by `mu`."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, mu=mu, device="cpu")
    return torch.as_tensor(scheduler.sigmas)


def shift_by_size(scheduler: Any, tokens: int) -> float:
    """Flux's `mu`: linear in the number of image tokens, between the ends that the scheduler's configuration names."""
    config: Any = scheduler.config
    return calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
