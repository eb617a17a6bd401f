"""From a draw to clean estimates, and from seeds to pictures, once for every host and architecture.

Latents x move along their noise level σ. In a flow x = (1 − σ)·x₀ + σ·ε, in a diffusion model x = x₀ + σ·ε; in both the
network gives the slope dx/dσ, the clean estimate is x̂₀ = x − σ·dx/dσ, and a step of the sampler is Euler's
(Karras et al. 2022, algorithm 2, without churn).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.errors import GeneratorError
from ..core.protocols import Draw, Estimate, Need

Scaled = Callable[[float], AbstractContextManager[Any]]  # while entered, the LoRA counts so many times


class Denoiser(Protocol):
    """One model at one picture size and number of steps; its latents have any layout, the batch first."""

    @property
    def sigmas(self) -> Tensor:
        """The sampler's noise levels [steps + 1], falling."""
        ...

    def start(self, seeds: Sequence[int]) -> Tensor:
        """Latents at the first noise level."""
        ...

    def __call__(self, x: Tensor, sigma: Tensor, prompt_indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clean estimates x̂₀ and slopes dx/dσ, float32, of latents x at noise levels [B]."""
        ...

    def renoise(self, clean: Tensor, seeds: Sequence[int], times: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Clean latents noised up to flow-matching times in (0, 1], 1 = pure noise, and their noise levels [B]."""
        ...

    def finish(self, x: Tensor) -> Tensor:
        """Clean latents of those that the sampler's last step has left."""
        ...

    def decode(self, clean: Tensor, /) -> Tensor:
        """Images [B, 3, H, W], float32, [0, 1] is the displayable range but nothing is clamped."""
        ...


def estimate(denoiser: Denoiser, draw: Draw, needs: Collection[Need], scaled: Scaled) -> Estimate:
    """Clean image estimates at the point that a draw names (paper, section 3.2); one forward pass with gradient."""
    found: dict[str, Tensor] = {}
    prompts = draw.prompt_indices
    base = clean = None
    with torch.no_grad():
        with scaled(0.0) if draw.base_trajectory else nullcontext():  # a walk over all layers
            x, sigma = _start(denoiser, draw)
        if {"base_image", "base_prediction"} & {*needs}:
            with scaled(0.0):
                base, found["base_prediction"] = denoiser(x, sigma, prompts)
    if {"image", "prediction"} & {*needs}:
        clean, found["prediction"] = denoiser(x, sigma, prompts)
    # The network has done its work when the decoder begins: they may take turns on one device.
    if base is not None and "base_image" in needs:
        with torch.no_grad():
            found["base_image"] = denoiser.decode(base)
    if clean is not None and "image" in needs:
        found["image"] = denoiser.decode(clean)
    return Estimate(**{name: found[name] for name in needs})


def _start(denoiser: Denoiser, draw: Draw) -> tuple[Tensor, Tensor]:
    """Where the step with gradient is made: latents and their noise levels [B]."""
    x = denoiser.start(draw.noise_seeds)
    if draw.renoise_times is None:
        x = _roll_out(denoiser, x, draw.sampler_steps, draw.prompt_indices)
        return x, denoiser.sigmas[list(draw.sampler_steps)].to(x)
    clean = denoiser.finish(_roll_out(denoiser, x, _all_steps(denoiser, len(x)), draw.prompt_indices))
    return denoiser.renoise(clean, draw.renoise_seeds or (), draw.renoise_times)


def sample(denoiser: Denoiser, prompt_indices: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], float32."""
    x = denoiser.start(seeds)
    x = _roll_out(denoiser, x, _all_steps(denoiser, len(x)), prompt_indices)
    return denoiser.decode(denoiser.finish(x)).clamp(0, 1)


def _all_steps(denoiser: Denoiser, size: int) -> list[int]:
    return [len(denoiser.sigmas) - 1] * size


def _roll_out(denoiser: Denoiser, x: Tensor, steps: Sequence[int], prompts: Sequence[int]) -> Tensor:
    """Makes the first `steps[b]` steps of sample b; each forward pass holds only those still under way."""
    x, sigmas = x.clone(), denoiser.sigmas.to(x)
    for i in range(max(steps)):
        rows = [row for row, count in enumerate(steps) if count > i]
        _, slope = denoiser(x[rows], sigmas[i].expand(len(rows)), [prompts[row] for row in rows])
        x[rows] += (sigmas[i + 1] - sigmas[i]) * slope
    return x


def check_batch(num_prompts: int, prompt_indices: Sequence[int], seeds: Sequence[int]) -> None:
    """Raises GeneratorError unless there is one seed for each of at least one prompt that the generator holds."""
    if len(prompt_indices) == 0 or len(prompt_indices) != len(seeds):
        raise GeneratorError(
            f"Expected one seed for each of at least one prompt index, got {len(prompt_indices)} indices and "
            f"{len(seeds)} seeds."
        )
    wrong = [index for index in prompt_indices if not 0 <= index < num_prompts]
    if wrong:
        raise GeneratorError(f"Expected prompt indices from 0 to {num_prompts - 1}, got {wrong}.")


def check_point(draw: Draw, steps: int) -> None:
    """Raises GeneratorError unless a draw names one point on the way of `steps` for each of its samples."""
    size = len(draw.prompt_indices)
    if draw.renoise_times is not None:
        if len(draw.renoise_times) != size or len(draw.renoise_seeds or ()) != size:
            raise GeneratorError(f"Expected {size} renoise times and seeds, one per sample, got {draw}.")
        if not all(0 < time <= 1 for time in draw.renoise_times):
            raise GeneratorError(f"Expected renoise times above 0 and up to 1, got {draw.renoise_times}.")
    elif len(draw.sampler_steps) != size or not all(0 <= step < steps for step in draw.sampler_steps):
        raise GeneratorError(
            f"Expected {size} sampler steps from 0 to {steps - 1}, one per sample, got {draw.sampler_steps}."
        )
