"""One backward pass: generate, judge, add the penalties, backpropagate into the LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..core.protocols import Critic, Draw, Estimate, Generator, Need
from .asking import Samples, answers_before
from .loss import vqa_loss
from .penalties import ANCHORS, JUDGED, PENALTIES, TARGETS
from .question import Question
from .recipe import Recipe
from .result import Preview
from .targets import Aims


@dataclass(frozen=True)
class Batch:
    """Detached terms of one backward pass."""

    loss: float  # nats; nan where no critic could look at the pictures
    log_likelihood: Tensor  # [B, Q]
    penalties: Mapping[str, float]
    preview: Preview


def learn_from(
    generator: Generator,
    critics: Mapping[str, Critic],
    recipe: Recipe,
    questions: Sequence[Question],
    draw: Draw,
    anchors: Draw | None,
    take_turns: bool,
) -> Batch:
    """Learns from one batch; its gradient is added to the LoRA's, divided by the number of batches of a step.

    `questions` are the recipe's, in the wordings of this step; `anchors` the samples of the penalties that ask for some
    beside the judged ones.
    With `take_turns` the generator enters its `training()` only while it works; else the caller has entered it. One
    that cannot keep its graph meanwhile makes each picture twice, first without gradient for the critics.
    """
    turn = partial(generator.training, in_turns=True) if take_turns else nullcontext
    twice = take_turns and not generator.keeps_graph
    needs = needs_of(recipe, JUDGED) | needs_of(recipe, TARGETS)
    needs.add("image")
    with turn(), torch.set_grad_enabled(not twice):
        estimate = generator.estimate(draw, {"image"} if twice else needs)
        base = _base_samples(generator, questions, draw)
    image = estimate.get("image")
    preview = Preview(image.detach().clamp(0, 1), draw.prompt_indices, draw.sampling.slider)
    if not torch.isfinite(image).all():
        unknown = torch.full((len(image), len(questions)), torch.nan)
        return Batch(math.nan, unknown, dict.fromkeys(recipe.penalties, 0.0), preview)
    before = {} if base is None else answers_before(critics, base, questions)
    judged = vqa_loss(critics, Samples(image, draw.prompt_indices, generator.prompts), questions, before)
    with turn():
        if twice:
            estimate = generator.estimate(draw, needs)  # the same picture, now with its graph
        penalties = penalties_of(recipe, JUDGED, estimate)
        if recipe.targets:
            penalties |= penalties_of(recipe, TARGETS, estimate, Aims.of(recipe.targets, draw, image.detach()))
        # One backward pass through the generator carries the critics' gradient and the penalties'.
        total = (judged.image_gradient.to(image) * estimate.get("image")).sum()
        backward(recipe, penalties, total)
        if anchors is not None:
            beside = penalties_of(recipe, ANCHORS, generator.estimate(anchors, needs_of(recipe, ANCHORS)))
            backward(recipe, beside, 0.0)
            penalties |= beside
    return Batch(judged.loss, judged.log_likelihood, {n: float(v.detach()) for n, v in penalties.items()}, preview)


def _base_samples(generator: Generator, questions: Sequence[Question], draw: Draw) -> Samples | None:
    """The base model's own estimates for a draw, where a question is to be answered as before."""
    if not any(question.is_as_before for question in questions):
        return None
    estimate = generator.estimate(replace(draw, base_trajectory=True), {"base_image"})
    return Samples(estimate.get("base_image"), draw.prompt_indices, generator.prompts)


def needs_of(recipe: Recipe, samples: str) -> set[Need]:
    """What the recipe's penalties on these samples need of an estimate."""
    active = (PENALTIES[name] for name in recipe.penalties)
    return {need for penalty in active if penalty.samples == samples for need in penalty.needs}


def penalties_of(recipe: Recipe, samples: str, estimate: Estimate, *beside: Aims) -> dict[str, Tensor]:
    """The recipe's penalties on these samples, by name; `beside` is what else they are called with."""
    active = (PENALTIES[name] for name in recipe.penalties)
    return {p.name: p.call(*map(estimate.get, p.needs), *beside) for p in active if p.samples == samples}


def backward(recipe: Recipe, penalties: Mapping[str, Tensor], total: Tensor | float) -> None:
    """Backpropagates `total` and the weighed penalties, divided by the number of batches of a step."""
    total = total + sum(recipe.penalties[name] * value for name, value in penalties.items())
    (torch.as_tensor(total) / recipe.gradient_accumulation).backward()
