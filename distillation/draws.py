"""Random draws: every sample's prompt, noise and sampler step come from (seed, step, sample index) alone.

So do the wordings of questions, from (seed, step, question).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.protocols import Draw
from .question import Question
from .recipe import SAMPLED, Recipe
from .slider import follows_slider
from .targets import target_seeds

WORDING_STREAM, SLIDER_STREAM = 3, 4  # set these draws apart from those of samples and anchors
BEYOND = 1.1  # values are drawn a little beyond the ends, and count as the ends


def draw_slider(recipe: Recipe, step: int, batch: int) -> float | None:
    """The slider's value for one of a step's batches, −1 … 1, if a question follows one.

    The batches of a step share the range out among them.
    """
    if not follows_slider(recipe):
        return None
    random = np.random.default_rng([recipe.seed, step, 0, SLIDER_STREAM])
    count = recipe.gradient_accumulation
    places = (random.permutation(count) + random.random(count)) / count
    return float(np.clip(BEYOND * (2 * places[batch] - 1), -1, 1))


def draw_batch(
    recipe: Recipe,
    step: int,
    first_sample: int,
    num_prompts: int,
    num_inference_steps: int,
    slider: float | None = None,
) -> Draw:
    """The samples `first_sample` … + batch_size − 1 of a step.

    Since no generator is carried from one draw to the next, resuming, accumulating and spreading samples over
    workers all see the same samples. A prompt whose targets belong to noises is drawn with one of these.
    """
    prompts, seeds, steps, times, renoise_seeds = [], [], [], [], []
    for sample in range(first_sample, first_sample + recipe.batch_size):
        random = np.random.default_rng([recipe.seed, step, sample])
        prompts.append(int(random.integers(num_prompts)))
        seeds.append(int(random.integers(2**63)))
        steps.append(int(random.integers(num_inference_steps)))
        times.append(1.0 - float(random.random()))  # (0, 1]
        renoise_seeds.append(int(random.integers(2**63)))
        if known := target_seeds(recipe.targets, prompts[-1]):
            seeds[-1] = known[int(random.integers(len(known)))]
    renoise = recipe.timesteps == "renoise"
    return Draw(
        prompt_indices=tuple(prompts),
        noise_seeds=tuple(seeds),
        sampler_steps=tuple(steps),
        sampling=replace(recipe.sampling, slider=slider),
        renoise_times=tuple(times) if renoise else None,
        renoise_seeds=tuple(renoise_seeds) if renoise else None,
    )


def draw_questions(recipe: Recipe, step: int) -> tuple[Question, ...]:
    """What a step asks: of each question one wording, where wordings are sampled.

    All samples of a step hear the same one, so that paraphrases cost the critic nothing.
    """
    if recipe.wordings != SAMPLED:
        return recipe.questions
    return tuple(_one_wording(q, recipe.seed, step, number) for number, q in enumerate(recipe.questions))


def _one_wording(question: Question, seed: int, step: int, number: int) -> Question:
    if not question.paraphrases:
        return question
    random = np.random.default_rng([seed, step, number, WORDING_STREAM])
    return question.worded(question.texts[int(random.integers(len(question.texts)))])
