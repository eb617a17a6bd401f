"""The VQA loss: how surely the critics give the wanted answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import RecipeError
from ..core.protocols import Critic, Overlay, Resident
from .recipe import Question


@dataclass(frozen=True)
class VqaLoss:
    """Detached terms of one batch and its gradient at the image."""

    loss: float
    log_likelihood: Tensor  # [B, Q], −inf … 0; nan where a question is not for the sample's prompt
    image_gradient: Tensor  # [B, 3, H, W]


def question_weights(questions: Sequence[Question], prompt_indices: Sequence[int]) -> Tensor:
    """Weights [B, Q] that add up to 1 for each sample; 0 where a question is not for the sample's prompt."""
    rows = [[q.weight * q.is_for(p) for q in questions] for p in prompt_indices]
    weights = torch.tensor(rows, dtype=torch.float64)
    return weights / weights.sum(dim=1, keepdim=True)


def group_questions(questions: Sequence[Question]) -> Iterator[tuple[str, Overlay | None, list[int]]]:
    """Questions that share a critic and an overlay: one composite, one call."""
    groups: dict[tuple[str, int], list[int]] = {}
    seen: list[Overlay | None] = []
    for index, question in enumerate(questions):
        if question.overlay not in seen:
            seen.append(question.overlay)
        groups.setdefault((question.critic, seen.index(question.overlay)), []).append(index)
    for (critic, overlay), members in groups.items():
        yield critic, seen[overlay], members


def vqa_loss(
    critics: Mapping[str, Critic], image: Tensor, questions: Sequence[Question], prompt_indices: Sequence[int]
) -> VqaLoss:
    """Weighted mean over questions of −log P(wanted answer | composite, question) (paper, equation 2).

    A question with a contrast counts as −(log P(answer) − log P(contrast)), which is not bounded below.

    The image [B, 3, H, W] is cut from the generator's graph; each critic adds its gradient to it, one after the
    other, so that no two critics' graphs, and no generator's, need to be in memory at once. Critics see the image
    clamped to [0, 1]: past saturation there is no gradient.
    """
    leaf = image.detach().requires_grad_()
    weights = question_weights(questions, prompt_indices).to(leaf)
    log_likelihood = torch.full((len(leaf), len(questions)), torch.nan)
    total = 0.0
    for name, overlay, members in group_questions(questions):
        rows = (weights[:, members] > 0).any(dim=1)
        if not rows.any():
            continue
        visible, asked = leaf[rows].clamp(0, 1), weights[rows][:, members]
        composite = visible if overlay is None else overlay.apply(visible)
        with _at_hand(critics[name]):
            scores, objective = _rate(critics[name], composite, [questions[i] for i in members])
            loss = -(torch.where(asked > 0, objective.to(leaf), 0.0) * asked).sum() / len(leaf)
            loss.backward()
        total += float(loss.detach())
        heard = torch.where(asked > 0, scores.detach().to(leaf), torch.nan).cpu()
        log_likelihood[rows.cpu().nonzero(), torch.tensor(members)] = heard
    assert leaf.grad is not None
    return VqaLoss(total, log_likelihood, leaf.grad)


def _rate(critic: Critic, composite: Tensor, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """log P(answer), and what is to grow: the same, or where there is a contrast its lead over it; both [B, Q]."""
    contrasted = [index for index, question in enumerate(questions) if question.contrast is not None]
    others = [replace(questions[i], answer=questions[i].contrast or "", contrast=None) for i in contrasted]
    scores = critic.log_likelihood(composite, [*questions, *others])
    own, pushed_away = scores[:, : len(questions)], scores[:, len(questions) :]
    return own, own.index_add(1, torch.tensor(contrasted, dtype=torch.long, device=own.device), -pushed_away)


def _at_hand(critic: Critic) -> AbstractContextManager[Any]:
    return critic.resident() if isinstance(critic, Resident) else nullcontext()


def check_questions(questions: Sequence[Question], critics: Mapping[str, Critic], num_prompts: int) -> None:
    """Refuses questions that cannot be asked, before anything is trained.

    Raises:
        RecipeError: an unknown critic, an overlay that is still plain data, or prompts that no question is for.
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
        if question.prompts is not None and max(question.prompts) >= num_prompts:
            raise RecipeError(
                f"Question {number} is for the prompts {question.prompts}, but only 0 to {num_prompts - 1} exist."
            )
    silent = [p for p in range(num_prompts) if not any(q.is_for(p) for q in questions)]
    if silent:
        raise RecipeError(f"No question is for the prompts {silent}. Remove them or ask something about them.")
