"""The VQA loss: how surely the critics give the wanted answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.protocols import Critic
from .asking import Before, Samples, Spelled, ask
from .question import Question


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


def vqa_loss(
    critics: Mapping[str, Critic], samples: Samples, questions: Sequence[Question], before: Before | None = None
) -> VqaLoss:
    """Weighted mean over questions of −log P(wanted answer | composite, question) (paper, equation 2).

    A question with a contrast counts as −(log P(answer) − log P(contrast)), which is not bounded below. `before` holds
    the wanted answers of questions "as before".

    Of a question with paraphrases all wordings are asked; the mean of their losses counts, and their mean P is told.

    The image is cut from the generator's graph; each critic adds its gradient to it, one after the other, so that no
    two critics' graphs, and no generator's, need to be in memory at once. Critics see the image clamped to [0, 1]:
    past saturation there is no gradient.
    """
    leaf = samples.images.detach().requires_grad_()
    spelled = Spelled.out(questions)
    weights = question_weights(spelled.questions, samples.prompt_indices).to(leaf)
    log_likelihood = torch.full((len(leaf), len(spelled.questions)), torch.nan)
    total = 0.0
    for replies in ask(critics, replace(samples, images=leaf), spelled.questions, spelled.before(before or {})):
        share = weights[replies.rows.to(leaf.device)][:, replies.members]
        lead = (replies.answer - replies.contrast).to(leaf)
        loss = -(lead * share).sum() / len(leaf)
        loss.backward()
        total += float(loss.detach())
        heard = torch.where(share > 0, replies.answer.detach().to(leaf), torch.nan).cpu()
        log_likelihood[replies.rows[:, None], torch.tensor(replies.members)] = heard
    assert leaf.grad is not None
    return VqaLoss(total, spelled.mean(log_likelihood), leaf.grad)
