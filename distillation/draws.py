"""Random draws: every sample's prompt, noise and sampler step come from (seed, step, sample index) alone."""

from __future__ import annotations

import numpy as np

from ..core.protocols import Draw
from .recipe import Recipe


def draw_batch(recipe: Recipe, step: int, first_sample: int, num_prompts: int, num_inference_steps: int) -> Draw:
    """The samples `first_sample` … + batch_size − 1 of a step.

    Since no generator is carried from one draw to the next, resuming, accumulating and spreading samples over
    workers all see the same samples.
    """
    prompts, seeds, steps, times, renoise_seeds = [], [], [], [], []
    for sample in range(first_sample, first_sample + recipe.batch_size):
        random = np.random.default_rng([recipe.seed, step, sample])
        prompts.append(int(random.integers(num_prompts)))
        seeds.append(int(random.integers(2**63)))
        steps.append(int(random.integers(num_inference_steps)))
        times.append(1.0 - float(random.random()))  # (0, 1]
        renoise_seeds.append(int(random.integers(2**63)))
    renoise = recipe.timesteps == "renoise"
    return Draw(
        prompt_indices=tuple(prompts),
        noise_seeds=tuple(seeds),
        sampler_steps=tuple(steps),
        sampling=recipe.sampling,
        renoise_times=tuple(times) if renoise else None,
        renoise_seeds=tuple(renoise_seeds) if renoise else None,
    )
