"""What became of any model, where no truth is known: held-out pictures before and after, and a verdict in plain words.

The critic that taught a model cannot tell alone whether it was fooled. So a run is also judged by what took no part in
the training: other questions, another critic, another picture size, and what pictures are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import GeneratorError
from ..core.protocols import Critic, Generator, slider_values
from ..distillation import Question, Recipe
from ..distillation.asking import Samples, answers_before, score
from ..distillation.question import CONTROL, KEEP, PROMPT
from ..distillation.slider import follows_slider
from .control import CONVINCED, EVALUATION_SEED, Verdict
from .measures import high_frequency_energy, seed_diversity

PROMPT_FITS = Question(
    f'Does this figure show "{PROMPT}"? Please answer yes or no.', "Yes"
)  # VQAScore, Lin et al. 2024
OTHER_SIZE = 0.75  # of the training pictures' height and width
OTHER_SIZE_PICTURES = 2
PROMPTS, SEEDS = 4, 2  # prompts of which a verdict looks at so many noises; of others it looks at one
MOST_PROMPTS = 32
SURE = 0.9  # a P(answer) from which on a small rise is enough
BELIEVED = 0.5  # a critic that was not this sure of a thing before cannot tell that it was lost
FALL = 0.15  # of a probability that is to be kept
UNMOVED = 0.25  # a share of the critic's rise: less by somebody else's judgement, and only this critic was won over
OnPicture = Callable[[int, int], None]  # pictures made, pictures in all


@dataclass(frozen=True)
class HeldOut:
    """Prompts and noises that were not trained on."""

    indices: tuple[int, ...]  # into the generator's prompts
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Look:
    """Pictures of held-out pairs, and what is measured on them."""

    images: Tensor  # [B, 3, H, W] in [0, 1], on the CPU
    other_size: Tensor  # a few of them at another size
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Before and after on the same pairs, and what to make of it."""

    before: Look
    after: Look
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """The fields that a report, a node and a LoRA's metadata show."""
        return {
            "outcome": self.verdict.outcome,
            "verdict": self.verdict.text,
            "lost": list(self.verdict.lost),
            "before": dict(self.before.measures),
            "after": dict(self.after.measures),
        }


def held_out_pairs(generator: Generator, recipe: Recipe) -> HeldOut:
    """Two noises each of four held-out prompts, one of every further one; four training prompts if none is held out."""
    first = len(recipe.prompts) or generator.num_prompts
    numbers = list(range(first, generator.num_prompts))[:MOST_PROMPTS] or list(range(first))[:PROMPTS]
    indices = [*(n for n in numbers[:PROMPTS] for _ in range(SEEDS)), *numbers[PROMPTS:]]
    return HeldOut(tuple(indices), tuple(EVALUATION_SEED + i for i in range(len(indices))))


class Examiner:
    """Looks at a generator before and after training; where a slider is followed, from one of its ends to the other.

    Args:
        generator, critics, recipe: those of the training.
        pairs: what to look at; `held_out_pairs` by default.
        referee: a critic that takes no part in the training, and is asked the same questions.
        on_picture: called while pictures are made.
    """

    def __init__(
        self,
        generator: Generator,
        critics: Mapping[str, Critic],
        recipe: Recipe,
        pairs: HeldOut | None = None,
        referee: Critic | None = None,
        on_picture: OnPicture | None = None,
    ) -> None:
        self._generator, self._critics, self._recipe = generator, dict(critics), recipe
        self.pairs = pairs or held_out_pairs(generator, recipe)
        self._referee, self._on_picture = referee, on_picture
        self._base: Look | None = None
        self._sliders = slider_values(len(self.pairs)) if follows_slider(recipe) else (None,) * len(self.pairs)

    def look(self, lora_scale: float, other_size: bool = True) -> Look:
        """Makes the pictures and measures them. The first look is the base model's: answers "as before" are read there.

        Args:
            lora_scale: 0 for the base model, 1 for the trained one.
            other_size: whether to make a few pictures at another size, too; a verdict wants them.
        """
        images = self._pictures(lora_scale, len(self.pairs))
        other = self._other_size(lora_scale, images) if other_size else images[:0]
        base = images if self._base is None else self._base.images
        look = Look(images, other, {**self._answers(images, base, other), **_texture(images, other, self.pairs)})
        if self._base is None:
            self._base = look
        return look

    def compare(self, after: Look) -> Comparison:
        """Judges a look after training against the first one."""
        assert self._base is not None, "look at the base model first"
        return Comparison(self._base, after, judge_without_truth(self._base.measures, after.measures))

    def _pictures(self, lora_scale: float, count: int, **size: int) -> Tensor:
        """The first `count` pairs, one at a time, to need no more memory than a training step."""
        sampling = replace(self._recipe.sampling, **size)
        made = []
        pairs = zip(self.pairs.indices[:count], self.pairs.seeds[:count], self._sliders[:count], strict=True)
        for index, seed, slider in pairs:
            own = replace(sampling, slider=slider)
            picture = self._generator.sample([index], [seed], lora_scale=lora_scale, sampling=own)
            made.append(picture.float().cpu())
            if self._on_picture is not None:
                self._on_picture(len(made), count)
        return torch.cat(made)

    def _other_size(self, lora_scale: float, images: Tensor) -> Tensor:
        """A few of the pictures at another size; none where the generator has no such size."""
        height, width = (_other(side) for side in images.shape[-2:])
        try:
            return self._pictures(lora_scale, min(OTHER_SIZE_PICTURES, len(images)), height=height, width=width)
        except GeneratorError:
            return images[:0]

    def _answers(self, images: Tensor, base: Tensor, other: Tensor) -> dict[str, float]:
        """Mean probabilities by critics; what nobody can be asked is left out."""
        prompts, critics = self._generator.prompts, self._critics
        # Held-out prompts have no question of their own: each is asked what all prompts are asked.
        everyone = [q for q in self._recipe.questions if q.prompts is None or not self._are_held_out]
        control = [q for q in everyone if q.role == CONTROL]
        keep = [q for q in everyone if q.role == KEEP]
        found = {"p_answer": self._mean(critics, images, base, control)}
        found["p_answer_other_size"] = self._mean(critics, other, other, [q for q in control if not q.is_as_before])
        found["p_keep"] = self._mean(critics, images, base, keep)
        first = next(iter(critics))
        if prompts is not None and can_read(critics[first], PROMPT_FITS.text):
            found["p_prompt_fits"] = self._mean(critics, images, base, [replace(PROMPT_FITS, critic=first)])
        if self._referee is not None:
            asked = [replace(q, critic="referee") for q in control]
            found["p_answer_referee"] = self._mean({"referee": self._referee}, images, base, asked)
        return {name: value for name, value in found.items() if value == value}

    @property
    def _are_held_out(self) -> bool:
        trained = len(self._recipe.prompts) or self._generator.num_prompts
        return any(index >= trained for index in self.pairs.indices)

    def _mean(
        self, critics: Mapping[str, Critic], images: Tensor, base: Tensor, questions: Sequence[Question]
    ) -> float:
        """Mean P(wanted answer) over pictures and questions, NaN if there are none; one picture at a time."""
        if not questions or len(images) == 0:
            return float("nan")
        rows = []
        for number, picture in enumerate(images):
            prompt, asked = [self.pairs.indices[number]], [q.at(self._sliders[number]) for q in questions]
            before = answers_before(critics, Samples(base[number : number + 1], prompt, self._generator.prompts), asked)
            samples = Samples(picture[None], prompt, self._generator.prompts)
            rows.append(score(critics, samples, asked, before).exp())
        return float(torch.cat(rows).nanmean())


def can_read(critic: Critic, text: str) -> bool:
    """Whether a critic knows all words of a text; one with a small vocabulary would guess."""
    unknown_words = getattr(critic, "unknown_words", None)
    return unknown_words is None or not unknown_words(text)


def _other(side: int) -> int:
    """A side of another size that any model takes: a multiple of 64 pixels, of 16 for tiny models."""
    grid = 64 if side >= 256 else 16
    return max(grid, round(OTHER_SIZE * side / grid) * grid)


def _texture(images: Tensor, other: Tensor, pairs: HeldOut) -> dict[str, float]:
    """What pictures are made of: brightness, contrast, colourfulness, clipped pixels, high frequencies, diversity."""
    diversity = seed_diversity(images, [str(index) for index in pairs.indices])
    found = {
        "brightness": float(images.mean()),
        "contrast": float(images.std(dim=(2, 3)).mean()),
        "colorfulness": float((images.amax(dim=1) - images.amin(dim=1)).mean()),
        "clipped_share": float(((images <= 0.01) | (images >= 0.99)).float().mean()),
        "high_frequency": float(high_frequency_energy(images).mean()),
        "high_frequency_other_size": float(high_frequency_energy(other).mean()) if len(other) else float("nan"),
        "diversity": diversity,
    }
    return {name: value for name, value in found.items() if value == value}


@dataclass(frozen=True)
class Share:
    """A measure that may change within limits, as a share of its value before."""

    measure: str
    least: float
    most: float
    too_little: str  # what is lost below and above the limits
    too_much: str


# Wide: a control changes pictures, and what is fixed varies no more: the demo's true scenes at one horizon keep 0.35 of
# their diversity, 0.2 to 0.6 by four prompts of two seeds.
KEPT = (
    Share("high_frequency", 0.35, 2.5, "sharp edges", "smooth areas"),
    Share("high_frequency_other_size", 0.25, 4.0, "sharp edges at another size", "smooth areas at another size"),
    Share("diversity", 0.12, 2.0, "variety between seeds", "what seeds have in common"),
    Share("contrast", 0.5, 2.0, "contrast", "moderate contrast"),
)
COLLAPSED = (
    Share("high_frequency", 0.1, 10.0, "all detail", "anything but noise"),
    Share("diversity", 0.05, 10.0, "all variety", "all likeness"),
    Share("contrast", 0.2, 5.0, "all contrast", "any but extreme values"),
)
CLIPPED_RISE = 0.25  # of the share of pixels that are black or fully lit


def judge_without_truth(before: Mapping[str, float], after: Mapping[str, float]) -> Verdict:
    """Judges measures of the same held-out pairs, see docs/evaluation.md.

    "learned": P(answer) rose by 0.2, or rose to 0.9. "damaged": it did, and something else was lost. "hacked": it did,
    but the pictures collapsed, or who took no part in the training (another critic, another picture size) did not
    follow. "not learned": it did not.
    """
    rise = after["p_answer"] - before["p_answer"]
    rose = rise >= CONVINCED or (rise > 0 and after["p_answer"] >= SURE)
    moved = _went("P(answer)", before["p_answer"], after["p_answer"])
    lost = {**_fallen(before, after), **_changed(before, after, KEPT)}
    also = f" Also lost: {_list(lost)}." if lost else ""
    if not rose:
        return Verdict("not learned", f"NOT LEARNED: {moved}.{also}", tuple(lost))
    doubts = {**_unmoved(before, after, rise), **_changed(before, after, COLLAPSED)}
    if after["clipped_share"] - before["clipped_share"] > CLIPPED_RISE:
        doubts["unclipped pixels"] = _went("share of clipped pixels", before["clipped_share"], after["clipped_share"])
    if doubts:
        text = f"HACKED: the critic was won over ({moved}), but the pictures lost: {_list(doubts)}."
        return Verdict("hacked", text, tuple({**doubts, **lost}))
    if lost:
        return Verdict("damaged", f"LEARNED BUT DAMAGED: {moved}, but the pictures lost: {_list(lost)}.", tuple(lost))
    return Verdict("learned", f"LEARNED: {moved}, and nothing was lost.")


def _fallen(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, str]:
    """Probabilities that were to be kept and fell."""
    kept = {"p_keep": "what the keep questions ask", "p_prompt_fits": "what the prompt says"}
    return {
        name: _went(f"P({key.removeprefix('p_').replace('_', ' ')})", before[key], after[key])
        for key, name in kept.items()
        if key in before and before[key] >= BELIEVED and before[key] - after[key] > FALL
    }


def _unmoved(before: Mapping[str, float], after: Mapping[str, float], rise: float) -> dict[str, str]:
    """Whoever took no part in the training and did not follow."""
    others = {"p_answer_referee": "the second critic's consent"}
    return {
        name: _went("its P(answer)", before[key], after[key])
        for key, name in others.items()
        if key in before and after[key] - before[key] < UNMOVED * rise and after[key] < SURE
    }


def _changed(before: Mapping[str, float], after: Mapping[str, float], limits: Sequence[Share]) -> dict[str, str]:
    found = {}
    for limit in limits:
        then, now = before.get(limit.measure, 0.0), after.get(limit.measure, 0.0)
        if then > 0 and not limit.least <= now / then <= limit.most:
            name = limit.too_little if now < then else limit.too_much
            found[name] = f"{limit.measure.replace('_', ' ')} became {now / then:.2f} of what it was"
    return found


def _went(name: str, then: float, now: float) -> str:
    return f"{name} went from {then:.2f} to {now:.2f}"


def _list(lost: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({figures})" for name, figures in lost.items())
