"""Anchors: base pictures that are right already, on which the model is to stay as it is.

A plain distance to the base model resists the control itself. Where the base model already gives the wanted answers,
there is nothing to resist, so that is where the penalty "anchors" holds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core.errors import StopRequested
from ..core.protocols import Critic, Draw, Generator, slider_values
from .asking import Samples, score
from .recipe import Recipe

POOL_STREAM, CHOICE_STREAM = 1, 2  # set these draws apart from those of the judged samples
SLIDER_VALUES = slider_values(9)  # of a slider, each with anchors of its own
OnAnchor = Callable[[int, int], None]  # pictures made, pictures of the pool


@dataclass(frozen=True)
class Anchor:
    """A (prompt, noise) pair of the base model, and the lowest P(answer) about its picture."""

    prompt_index: int
    noise_seed: int
    p_answer: float
    slider: float | None = None  # the value at which it is right, of a control that follows a slider


def find_anchors(
    generator: Generator,
    critics: Mapping[str, Critic],
    recipe: Recipe,
    num_prompts: int,
    on_anchor: OnAnchor | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Anchor, ...]:
    """Makes the pool, asks the recipe's own questions about it, and keeps what is right already, the best first.

    Questions answered "as before" are left out: about base pictures they say nothing.

    Raises:
        StopRequested: `should_stop` said so.
    """
    asked = [q for q in recipe.questions if not q.is_as_before]
    values = SLIDER_VALUES if any(q.follows_slider for q in asked) else (None,)
    fixed = [q for q in asked if not q.follows_slider]
    moving = [[q.at(value) for q in asked if q.follows_slider] for value in values]
    questions = [*fixed, *itertools.chain.from_iterable(moving)]
    candidates = pool(recipe, num_prompts)
    rated: list[Anchor] = []
    for first in range(0, len(candidates), recipe.batch_size):
        if should_stop is not None and should_stop():
            raise StopRequested
        prompts, seeds = zip(*candidates[first : first + recipe.batch_size], strict=True)
        images = generator.sample(prompts, seeds, lora_scale=0.0, sampling=recipe.sampling)
        scores = score(critics, Samples(images, prompts, generator.prompts), questions).nan_to_num(nan=torch.inf)
        always, *by_value = scores.split([len(fixed), *map(len, moving)], dim=1)
        for value, own in zip(values, by_value, strict=True):
            lowest = torch.cat([always, own], dim=1).amin(dim=1).exp().tolist()
            rated += [Anchor(*row, value) for row in zip(prompts, seeds, lowest, strict=True)]
        if on_anchor is not None:
            on_anchor(first + len(prompts), len(candidates))
    return tuple(anchor for value in values for anchor in choose([a for a in rated if a.slider == value], recipe))


def pool(recipe: Recipe, num_prompts: int) -> list[tuple[int, int]]:
    """(prompt index, noise seed) of each candidate: the prompts in turn."""
    return [
        (number % num_prompts, int(np.random.default_rng([recipe.seed, number, 0, POOL_STREAM]).integers(2**63)))
        for number in range(recipe.anchors.pool)
    ]


def choose(rated: Sequence[Anchor], recipe: Recipe) -> tuple[Anchor, ...]:
    """Those above the threshold, or the best few if there are fewer."""
    best = sorted(rated, key=lambda anchor: -anchor.p_answer)
    right = sum(anchor.p_answer > recipe.anchors.threshold for anchor in best)
    return tuple(best[: max(right, recipe.anchors.least)])


def nearest_value(slider: float) -> float:
    """The value out of those with anchors that is nearest to the slider's."""
    return min(SLIDER_VALUES, key=lambda value: abs(value - slider))


def draw_anchors(
    recipe: Recipe, step: int, first_sample: int, anchors: Sequence[Anchor], judged: Draw, num_inference_steps: int
) -> Draw:
    """An anchor for each judged sample of a batch, at its noise level or a random one.

    Those of a slider are of the value that is nearest to the batch's.
    """
    value = judged.sampling.slider
    if value is not None:
        value = nearest_value(value)
        anchors = [anchor for anchor in anchors if anchor.slider == value]
    chosen, sampler_steps, times = [], [], []
    for sample in range(recipe.batch_size):
        random = np.random.default_rng([recipe.seed, step, first_sample + sample, CHOICE_STREAM])
        chosen.append(anchors[int(random.integers(len(anchors)))])
        sampler_steps.append(int(random.integers(num_inference_steps)))
        times.append(1.0 - float(random.random()))  # (0, 1]
    same = recipe.anchors.noise_level == "judged"
    renoise = judged.renoise_times is not None
    return Draw(
        prompt_indices=tuple(a.prompt_index for a in chosen),
        noise_seeds=tuple(a.noise_seed for a in chosen),
        sampler_steps=judged.sampler_steps if same else tuple(sampler_steps),
        sampling=replace(judged.sampling, slider=value),
        renoise_times=judged.renoise_times if same or not renoise else tuple(times),
        renoise_seeds=judged.renoise_seeds,
        base_trajectory=True,
    )
