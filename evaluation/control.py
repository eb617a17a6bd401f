"""How well a control was learnt: one target measure, guards that must not fall, a verdict in plain words.

A control that is judged by its critic alone, or by one measure alone, is easily fooled: a collapsed generator can
score well on either. So each control names what must improve and what must be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distillation import Critic, Generator, Recipe

EVALUATION_SEED = 1 << 40  # training draws 63-bit seeds at random; these are never among them in practice


@dataclass(frozen=True)
class Pairs:
    """Held-out (prompt, noise) pairs: what the base and the trained model are compared on."""

    indices: tuple[int, ...]  # into the generator's prompts
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    noise: Tensor  # [B, C, h, w], the noise that the seeds stand for

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Bound:
    """One measure of a control and the side on which it is better."""

    measure: str  # dotted path into the measures, for example "horizon_error_px.mean"
    better: str  # "lower" or "higher"
    slack: float = 0.0  # how far a guard may get worse; how far the target must get better, as `relative` says
    relative: bool = False  # slack as a share of the value before

    def gain(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
        """By how much the measure got better, in its own unit."""
        change = read(after, self.measure) - read(before, self.measure)
        return change if self.better == "higher" else -change

    def margin(self, before: Mapping[str, Any]) -> float:
        return self.slack * abs(read(before, self.measure)) if self.relative else self.slack


@dataclass(frozen=True)
class Control:
    """Something that can be taught and truly measured."""

    name: str
    recipe: Recipe
    held_out: tuple[str, ...]  # prompts of the evaluation, disjoint from the recipe's
    measure: Callable[[Tensor, Tensor, Pairs], dict[str, Any]]  # pictures, base pictures, pairs → measures
    target: Bound
    guards: tuple[Bound, ...]

    def __post_init__(self) -> None:
        if shared := set(self.held_out) & set(self.recipe.prompts):
            raise ValueError(f"The prompts {sorted(shared)} of {self.name} are both trained on and held out.")
        if any(q.prompts is not None or q.critic != "default" for q in self.recipe.questions):
            raise ValueError(f"The questions of {self.name} are asked of one critic about every held-out picture.")

    @property
    def prompts(self) -> list[str]:
        """What the generator has to hold: the training prompts, then the held-out ones."""
        return [*self.recipe.prompts, *self.held_out]


@dataclass(frozen=True)
class Verdict:
    """`outcome` is "learned", "hacked" (the target rose while a guard fell), or "not learned"."""

    outcome: str
    text: str


def read(measures: Mapping[str, Any], path: str) -> float:
    value: Any = measures
    for key in path.split("."):
        value = value[key]
    return float(value)


def make_pairs(control: Control, count: int, draw_noise: Callable[[Sequence[int]], Tensor]) -> Pairs:
    """`count` pairs that go round the held-out prompts, each with a noise of its own."""
    first = len(control.recipe.prompts)
    indices = tuple(first + i % len(control.held_out) for i in range(count))
    seeds = tuple(EVALUATION_SEED + i for i in range(count))
    return Pairs(indices, tuple(control.prompts[i] for i in indices), seeds, draw_noise(seeds))


def sample_pairs(generator: Generator, pairs: Pairs, lora_scale: float, batch: int = 16) -> Tensor:
    """The pictures of the pairs, [B, 3, H, W]."""
    parts = [
        generator.sample(pairs.indices[i : i + batch], pairs.seeds[i : i + batch], lora_scale=lora_scale)
        for i in range(0, len(pairs), batch)
    ]
    return torch.cat(parts).cpu()


@torch.no_grad()
def evaluate(control: Control, critic: Critic, images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
    """P(answer) of the control's questions, the mean over all pictures, and the control's own measures."""
    probabilities = []
    for question in control.recipe.questions:
        composites = question.overlay.apply(images) if question.overlay is not None else images
        probabilities += [critic.log_likelihood(part, [question]).exp() for part in composites.split(16)]
    return {"p_answer": float(torch.cat(probabilities).mean()), **control.measure(images, base, pairs)}


def judge(control: Control, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """Compares two evaluations on the same pairs."""
    target = control.target
    gain = target.gain(before, after)
    moved = _change(target, before, after)
    fallen = [g for g in control.guards if not g.gain(before, after) >= -g.margin(before)]
    losses = "; ".join(_change(g, before, after) for g in fallen)
    if gain > 0.1 * target.margin(before) and fallen:
        return Verdict("hacked", f"HACKED: {moved}, which looks better, but a guard fell: {losses}.")
    if fallen:
        return Verdict("not learned", f"NOT LEARNED, and a guard fell: {moved}; {losses}.")
    if not gain >= target.margin(before) or math.isnan(gain):
        return Verdict("not learned", f"NOT LEARNED: {moved}, too little.")
    return Verdict("learned", f"LEARNED: {moved}, and no guard fell.")


def _change(bound: Bound, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    then, now = read(before, bound.measure), read(after, bound.measure)
    return f"{bound.measure} went from {then:.3g} to {now:.3g} ({bound.better} is better)"
