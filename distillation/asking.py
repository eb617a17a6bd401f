"""Asking critics about samples: words filled in, one composite and one call for all questions of an overlay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import RecipeError
from ..core.picture import Picture
from ..core.protocols import Critic, Overlay, Resident
from .question import AS_BEFORE, PROMPT, Question

Before = Mapping[int, Sequence[str]]  # by number of a question "as before": the answer that each sample is to keep


@dataclass(frozen=True)
class Asked:
    """A question as one sample's critic hears it."""

    text: str
    answer: str
    references: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Samples:
    """What questions are asked about: pictures of prompts."""

    images: Tensor  # [B, 3, H, W]; critics see them clamped to [0, 1]
    prompt_indices: Sequence[int]
    prompts: Sequence[str] | None  # texts of the generator's prompts, where known


@dataclass(frozen=True)
class Replies:
    """What one critic says of one composite: log P of answers and of contrasts, [R, K], 0 where nothing is asked."""

    rows: Tensor  # [R], numbers of the samples that were asked about
    members: list[int]  # [K], numbers of the questions
    answer: Tensor
    contrast: Tensor


@dataclass(frozen=True)
class Spelled:
    """Questions with each wording as a question of its own, an equal share of the weight each."""

    questions: tuple[Question, ...]  # [W]
    owners: tuple[int, ...]  # [W], whose wording it is: numbers of the questions as they were

    @classmethod
    def out(cls, questions: Sequence[Question]) -> Spelled:
        rows = [
            (replace(question.worded(text), weight=question.weight / len(question.texts)), number)
            for number, question in enumerate(questions)
            for text in question.texts
        ]
        return cls(tuple(q for q, _ in rows), tuple(number for _, number in rows))

    def before(self, before: Before) -> Before:
        """The answers to keep, by number of a wording instead of a question."""
        return {number: before[owner] for number, owner in enumerate(self.owners) if owner in before}

    def mean(self, log_likelihood: Tensor) -> Tensor:
        """log of the mean P over each question's wordings, [B, Q] of [B, W]."""
        columns: dict[int, list[int]] = {}
        for number, owner in enumerate(self.owners):
            columns.setdefault(owner, []).append(number)
        means = [log_likelihood[:, own].logsumexp(dim=1) - math.log(len(own)) for own in columns.values()]
        return torch.stack(means, dim=1)


def is_asked(questions: Sequence[Question], prompt_indices: Sequence[int]) -> Tensor:
    """[B, Q], whether a question is for a sample's prompt."""
    return torch.tensor([[q.is_for(p) for q in questions] for p in prompt_indices])


def group_questions(questions: Sequence[Question]) -> Iterator[tuple[str, Overlay | None, list[int]]]:
    """Questions that share a critic, an overlay and references: one composite, one call."""
    groups: dict[tuple[str, int], list[int]] = {}
    seen: list[tuple[Overlay | None, tuple[Picture, ...]]] = []
    for index, question in enumerate(questions):
        shown = (question.overlay, question.references)
        if shown not in seen:
            seen.append(shown)
        groups.setdefault((question.critic, seen.index(shown)), []).append(index)
    for (critic, shown), members in groups.items():
        yield critic, seen[shown][0], members


def ask(
    critics: Mapping[str, Critic], samples: Samples, questions: Sequence[Question], before: Before
) -> Iterator[Replies]:
    """Asks each critic about each overlay's composite, one after the other; of each question its `text` alone.

    While the caller looks at a reply, and makes its backward pass, the critic is at hand.
    """
    asked = is_asked(questions, samples.prompt_indices)
    for name, overlay, members in group_questions(questions):
        rows = asked[:, members].any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        images = samples.images
        visible = (images if len(rows) == len(images) else images[rows.to(images.device)]).clamp(0, 1)
        composite = visible if overlay is None else overlay.apply(visible)
        own = asked[rows][:, members]
        answers, contrasts = _wordings(questions, samples, rows.tolist(), members, before)
        with _at_hand(critics[name]):
            answer, contrast = _rate(critics[name], composite, [_where(own, answers), _where(own, contrasts)])
            yield Replies(rows, members, answer, contrast)


Wordings = list[list[tuple[Asked, ...]]]  # [R][K], the answers of a scale, the wanted one last; () if nothing is asked


def _wordings(
    questions: Sequence[Question], samples: Samples, rows: Sequence[int], members: Sequence[int], before: Before
) -> tuple[Wordings, Wordings]:
    """Each question's answer, and its contrast if it has one, as they are asked about each sample."""

    def text(row: int, question: Question) -> str:
        if samples.prompts is None:
            return question.text
        return question.text.replace(PROMPT, samples.prompts[samples.prompt_indices[row]])

    def answer(row: int, number: int) -> tuple[Asked, ...]:
        question = questions[number]
        answers = (before[number][row],) if question.is_as_before else question.scale
        return tuple(Asked(text(row, question), answer, question.references) for answer in answers)

    def contrast(row: int, question: Question) -> tuple[Asked, ...]:
        answers = () if question.contrast is None else (question.contrast,)
        return tuple(Asked(text(row, question), answer, question.references) for answer in answers)

    answers: Wordings = [[answer(row, number) for number in members] for row in rows]
    return answers, [[contrast(row, questions[number]) for number in members] for row in rows]


def _where(asked: Tensor, wordings: Wordings) -> Wordings:
    return [[w if use else () for w, use in zip(*row, strict=True)] for row in zip(wordings, asked, strict=True)]


def _rate(critic: Critic, composite: Tensor, tables: Sequence[Wordings]) -> list[Tensor]:
    """log P of each table's wordings, [R, K] each, by one call with every wording that some sample needs."""
    wordings = list(dict.fromkeys(w for table in tables for row in table for cell in row for w in cell))
    scores = critic.log_likelihood(composite, wordings)  # [R, W]
    return [_pick(scores, wordings, table) for table in tables]


def _pick(scores: Tensor, wordings: Sequence[Asked], table: Wordings) -> Tensor:
    """Of scores [R, W] those of each sample's own wordings, [R, K]; 0 where there is none."""
    numbers = {wording: number for number, wording in enumerate(wordings)}
    columns = zip(*([tuple(numbers[w] for w in cell) for cell in row] for row in table), strict=True)
    return torch.stack([_score(scores, column) for column in columns], dim=1)


def _score(scores: Tensor, places: Sequence[tuple[int, ...]]) -> Tensor:
    """Of scores [R, W] one question's, [R]: where they are, or the log of the expected grade over a scale of them.

    A scale counts from 0 at its first grade to 1 at its last, over the P of its grades alone.
    """
    length = max(map(len, places))
    asked = torch.tensor([bool(own) for own in places], device=scores.device)
    if length == 0:
        return scores.new_zeros(len(scores))
    where = torch.tensor([own or (0,) * length for own in places], device=scores.device)
    found = scores.gather(1, where)  # [R, length]
    if length > 1:
        shares = torch.linspace(0, 1, length, device=scores.device, dtype=scores.dtype)[1:].log()
        found = ((found[:, 1:] + shares).logsumexp(dim=1) - found.logsumexp(dim=1))[:, None]
    return torch.where(asked, found[:, 0], 0.0)


def _at_hand(critic: Critic) -> AbstractContextManager[Any]:
    return critic.resident() if isinstance(critic, Resident) else nullcontext()


@torch.no_grad()
def score(
    critics: Mapping[str, Critic], samples: Samples, questions: Sequence[Question], before: Before | None = None
) -> Tensor:
    """log P(wanted answer), [B, Q] on the CPU, without gradient; nan where a question is not for a sample's prompt.

    P is the mean over all wordings of a question.
    """
    spelled = Spelled.out(questions)
    found = torch.full((len(samples.images), len(spelled.questions)), torch.nan)
    for replies in ask(critics, samples, spelled.questions, spelled.before(before or {})):
        found[replies.rows[:, None], torch.tensor(replies.members)] = replies.answer.float().cpu()
    return spelled.mean(found.where(is_asked(spelled.questions, samples.prompt_indices), torch.nan))


def answers_before(critics: Mapping[str, Critic], base: Samples, questions: Sequence[Question]) -> Before:
    """By each question "as before": the likeliest of its choices about base pictures of the same prompts and noises."""
    numbers = [number for number, question in enumerate(questions) if question.is_as_before]
    if not numbers:
        return {}
    options = [replace(questions[n], answer=choice) for n in numbers for choice in questions[n].choices]
    scores = iter(score(critics, base, options).nan_to_num().unbind(dim=1))
    found = {}
    for n in numbers:
        choices = questions[n].choices
        best = torch.stack([next(scores) for _ in choices], dim=1).argmax(dim=1)
        found[n] = [choices[index] for index in best.tolist()]
    return found


def check_questions(
    questions: Sequence[Question],
    critics: Mapping[str, Critic],
    num_prompts: int,
    prompts: Sequence[str] | None = None,
) -> None:
    """Refuses questions that cannot be asked, before anything is trained.

    Raises:
        RecipeError: an unknown critic, an overlay that is still plain data, words of prompts that carry none,
            prompts that no question is for, or two questions that want different answers to the same.
    """
    for number, question in enumerate(questions, start=1):
        if question.critic not in critics:
            raise RecipeError(
                f"Question {number} asks the critic {question.critic!r}, but the critics given are {sorted(critics)}."
            )
        if question.overlay is not None and not isinstance(question.overlay, Overlay):
            raise RecipeError(
                f"The overlay of question {number} is plain data. Build it first: "
                "Recipe.load(path, build_overlay=dual_process.overlays.build)."
            )
        if prompts is None and any(PROMPT in text for text in question.texts):
            raise RecipeError(
                f"Question {number} uses {PROMPT}, but the prompts carry no words here, as CONDITIONINGs of ComfyUI do "
                f"not. Write the words into the question, or ask something and give the answer '{AS_BEFORE}'."
            )
        if question.prompts is not None and max(question.prompts) >= num_prompts:
            raise RecipeError(
                f"Question {number} is for the prompts {question.prompts}, but only 0 to {num_prompts - 1} exist."
            )
    _check_agreement(questions)
    silent = [p for p in range(num_prompts) if not any(q.is_for(p) for q in questions)]
    if silent:
        raise RecipeError(f"No question is for the prompts {silent}. Remove them or ask something about them.")


def _check_agreement(questions: Sequence[Question]) -> None:
    """Raises RecipeError where one question is to be answered in two ways about the same pictures."""
    for one, other in itertools.combinations(questions, 2):
        same = [text for text in one.texts if text in other.texts]
        alike = (one.overlay, one.critic, one.references) == (other.overlay, other.critic, other.references)
        shared = one.prompts is None or other.prompts is None or {*one.prompts} & {*other.prompts}
        if same and alike and shared and one.answer != other.answer:
            raise RecipeError(
                f"The question {same[0]!r} is to be answered {one.answer!r} and {other.answer!r} at once. Leave one "
                "out, or give each its own prompts."
            )
