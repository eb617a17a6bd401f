"""How well a control was learnt: one target measure, guards that must not fall, a verdict in plain words.

A control that is judged by its critic alone, or by one measure alone, is easily fooled: a collapsed generator can
score well on either, and a picture can fall apart while its one measure improves. So each control names what must
improve and what must be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distillation import Critic, Generator, Question, Recipe, Sampling
from .fidelity import Truth, against_base, against_truth
from .measures import psnr

LIKENESS = "psnr_counterfactual"
LED_AWAY = 0.5  # dB by which the likeness falls where training led away from the truth, rather than painted a bit worse
CONVINCED = 0.2  # by how much P(answer) rises where a critic was won over, truly or not
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
    """The measure that a control must improve, and by how much."""

    measure: str  # dotted path into the measures, for example "horizon_error_px.mean"
    better: str  # "lower" or "higher"
    slack: float = 0.0  # how far it must get better, as `relative` says
    relative: bool = False  # slack as a share of the value before
    name: str = ""  # in plain words, for example "the mean horizon error in pixels"; the path by default

    def gain(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
        """By how much the measure got better, in its own unit."""
        change = read(after, self.measure) - read(before, self.measure)
        return change if self.better == "higher" else -change

    def margin(self, before: Mapping[str, Any]) -> float:
        return self.slack * abs(read(before, self.measure)) if self.relative else self.slack


@dataclass(frozen=True)
class Guard:
    """A measure that must be kept: one limit, or several, each of which must hold."""

    measure: str  # dotted path into the measures
    lost: str  # what a person misses where the guard falls, for example "objects"
    least: float | None = None  # the measure must be at least this …
    most: float | None = None  # … and at most this …
    drop: float | None = None  # … and at most this far below its value before
    name: str = ""  # the measure in plain words; its path, without underscores, by default

    def __post_init__(self) -> None:
        if self.least is None and self.most is None and self.drop is None:
            raise ValueError(f"The guard of {self.measure} has no limit: give it least, most or drop.")

    def limits(self, before: Mapping[str, Any]) -> tuple[float, float]:
        """The least and the most that the measure may be."""
        least = -math.inf if self.least is None else self.least
        if self.drop is not None:
            least = max(least, read(before, self.measure) - self.drop)
        return least, math.inf if self.most is None else self.most

    def holds(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Whether the measure is within its limits; NaN never is."""
        least, most = self.limits(before)
        return least <= read(after, self.measure) <= most

    def measured(self, before: Mapping[str, Any]) -> bool:
        """Whether there is such a measure: few pairs may hold no object, and no prompt twice."""
        return self.measure.split(".")[0] in before


@dataclass(frozen=True)
class Control:
    """Something that can be taught and truly measured."""

    name: str
    recipe: Recipe
    held_out: tuple[str, ...]  # prompts of the evaluation, disjoint from the recipe's
    measure: Callable[[Tensor, Tensor, Pairs], dict[str, Any]]  # pictures, base pictures, pairs → measures
    target: Bound
    guards: tuple[Guard, ...]
    own: Callable[[Pairs], Truth] | None = None  # what the base model's pictures should look like, where it is known
    truth: Callable[[Pairs], Truth] | None = None  # what the trained model's should, where it is known
    asked: tuple[Question, ...] = ()  # whose P(answer) is reported; the recipe's questions by default
    noise_shape: tuple[int, int, int] = (16, 14, 14)  # channels, height and width of the world's latents

    def __post_init__(self) -> None:
        if self.truth is not None and self.own is None:
            raise ValueError(f"{self.name} knows the true pictures after training, but not those before: give it own.")
        if shared := set(self.held_out) & set(self.recipe.prompts):
            raise ValueError(f"The prompts {sorted(shared)} of {self.name} are both trained on and held out.")
        if any(q.prompts is not None or q.critic != "default" for q in self.questions):
            raise ValueError(f"The questions of {self.name} are asked of one critic about every held-out picture.")

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those whose P(answer) tells whether the critic was won over."""
        return self.asked or self.recipe.questions

    @property
    def prompts(self) -> list[str]:
        """What the generator has to hold: the training prompts, then the held-out ones."""
        return [*self.recipe.prompts, *self.held_out]


@dataclass(frozen=True)
class Verdict:
    """What became of a control, and of the pictures meanwhile.

    `outcome` is "learned", "damaged" (learned, but something else was lost), "hacked" (the critic was won over, the
    truth was not served), or "not learned"; `lost` names in plain words what was lost where the target was met.
    """

    outcome: str
    text: str
    lost: tuple[str, ...] = ()


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


def sample_pairs(
    generator: Generator, pairs: Pairs, lora_scale: float, batch: int = 16, slider: float | None = None
) -> Tensor:
    """The pictures of the pairs, [B, 3, H, W], at a value of the LoRA's slider, if it has one."""
    parts = []
    for first in range(0, len(pairs), batch):
        own = slice(first, first + batch)
        sampling = Sampling(slider=slider)
        parts.append(generator.sample(pairs.indices[own], pairs.seeds[own], lora_scale=lora_scale, sampling=sampling))
    return torch.cat(parts).cpu()


@torch.no_grad()
def evaluate(
    control: Control, critic: Critic, images: Tensor, base: Tensor, pairs: Pairs, trained: bool
) -> dict[str, Any]:
    """P(answer) of what the control asks, the mean over all pictures; the control's own measures; and fidelity.

    Args:
        images: pictures of the pairs, [B, 3, H, W].
        base: the base model's pictures of the pairs.
        trained: whether `images` are the trained model's. They are held against the true pictures that the control
            should lead to; the base model's against the true pictures of their own scenes.
    """
    probabilities = []
    for question in control.questions:
        composites = question.overlay.apply(images) if question.overlay is not None else images
        asked = [question.worded(text) for text in question.texts]
        probabilities += [critic.log_likelihood(part, asked).exp().mean(dim=1) for part in composites.split(16)]
    return {
        "p_answer": float(torch.cat(probabilities).mean()),
        **control.measure(images, base, pairs),
        **_fidelity(control, images, base, pairs, trained),
    }


def _fidelity(control: Control, images: Tensor, base: Tensor, pairs: Pairs, trained: bool) -> dict[str, float]:
    """Measures that every control of a known world shares; none where nothing is known."""
    if control.own is None:
        return {}
    own = control.own(pairs)
    if control.truth is None:
        return against_base(images, base, own, pairs.prompts)
    truth = control.truth(pairs)
    likeness = float(psnr(images, truth.images).mean())  # before too: the way that training has to go
    return {LIKENESS: likeness, **against_truth(images, truth if trained else own, pairs.prompts)}


def judge(control: Control, before: Mapping[str, Any], after: Mapping[str, Any]) -> Verdict:
    """Compares two evaluations on the same pairs."""
    target = control.target
    improved = target.gain(before, after) >= target.margin(before)
    convinced = after["p_answer"] - before["p_answer"] >= CONVINCED
    led_away = LIKENESS in before and not after[LIKENESS] >= before[LIKENESS] - LED_AWAY
    known = [g for g in control.guards if g.measured(before)]
    # Pictures that were not led to the true ones differ from them in everything: that would be no loss.
    fallen = [g for g in known if not g.holds(before, after)] if improved else []
    lost = tuple(dict.fromkeys(g.lost for g in fallen))

    moved = _went(target.name or target.measure, target.measure, before, after)
    losses = ", ".join(_loss(guard, before, after) for guard in fallen)
    if convinced and (led_away or not improved):
        won = _went("P(answer)", "p_answer", before, after)
        why = [] if improved else [f"{moved}, where {_wanted(target, before)}"]
        if led_away:
            why.append(f"the pictures went away from the true ones ({_went('PSNR in dB', LIKENESS, before, after)})")
        also = f" Lost: {losses}." if losses else ""
        return Verdict("hacked", f"HACKED: the critic was won over ({won}), but {', and '.join(why)}.{also}", lost)
    if not improved:
        return Verdict("not learned", f"NOT LEARNED: {moved}, where {_wanted(target, before)}.")
    if fallen:
        return Verdict("damaged", f"LEARNED BUT DAMAGED: {moved}, but the pictures lost: {losses}.", lost)
    unknown = ", ".join(dict.fromkeys(g.lost for g in control.guards if g not in known))
    also = f" Too few pairs to tell about: {unknown}." if unknown else ""
    return Verdict("learned", f"LEARNED: {moved}, and nothing was lost.{also}")


def _wanted(target: Bound, before: Mapping[str, Any]) -> str:
    value, margin = read(before, target.measure), target.margin(before)
    if target.better == "higher":
        return f"at least {_figure(value + margin)} is asked"
    return f"at most {_figure(value - margin)} is asked"


def _loss(guard: Guard, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    least, most = guard.limits(before)
    limit = f"at most {_figure(most)}" if read(after, guard.measure) > most else f"at least {_figure(least)}"
    if not math.isfinite(least):
        limit = f"at most {_figure(most)}"
    moved = _went(guard.name or guard.measure.replace("_", " "), guard.measure, before, after)
    return f"{guard.lost} ({moved}; {limit} is asked)"


def _went(name: str, measure: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return f"{name} went from {_figure(read(before, measure))} to {_figure(read(after, measure))}"


def _figure(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
