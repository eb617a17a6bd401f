"""A critic whose answers are a formula of the picture's colours, so that training has a known direction."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dual_process.core.protocols import ModelInfo


def brightness(images):
    return images.mean(dim=(1, 2, 3))


def redness(images):
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1:].mean(dim=(1, 2, 3))


MEASURES = {"Is it bright?": brightness, "Is it red?": redness}


class AnalyticCritic:
    """log P(Yes) = log σ(20 · (measure − 1/2))."""

    info = ModelInfo("analytic", "formula", "float32", "0" * 64)

    def log_likelihood(self, images, questions):
        return torch.stack([F.logsigmoid(20 * (MEASURES[q.text](images) - 0.5)) for q in questions], dim=1)

    def answer(self, images, text, max_new_tokens=16):
        return ["Yes" if value > 0.5 else "No" for value in MEASURES[text](images)]
