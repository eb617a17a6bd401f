"""Watching a run: held-out pictures and a judgement every few steps, the best LoRA so far, and when to give up.

The loss of training goes on falling after the pictures have begun to suffer. Questions about held-out pictures see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import EnoughLearned
from ..distillation import Preview, Run, StepReport
from ..distillation.checkpoint import Checkpoint
from .held_out import Comparison, Examiner, Look

JUDGED_BY = ("p_answer", "p_keep", "p_prompt_fits")
OnGlance = Callable[["Glance"], None]


@dataclass(frozen=True)
class Glance:
    """Held-out pictures after some step, and how good they are."""

    step: int
    look: Look
    score: float


class Watch:
    """An observer of a run that looks at held-out pictures.

    Args:
        examiner: looks at the pictures; it must have looked at the base model before.
        every: steps between two looks, at least 1. The last step is looked at, too.
        patience: how many looks in a row may bring no better score before the run ends; 0 for ever.
        on_glance: called after every look.

    Attributes:
        scores: (step, score) of every look so far.
        best: the LoRA of the highest score, and all that it takes to go on from there.
    """

    def __init__(self, examiner: Examiner, every: int, patience: int = 0, on_glance: OnGlance | None = None) -> None:
        self._examiner, self._every, self._patience, self._on_glance = examiner, every, patience, on_glance
        self.scores: list[tuple[int, float]] = []
        self.best: Checkpoint | None = None
        self._newest: Look | None = None

    def __call__(self, run: Run, report: StepReport, preview: Preview) -> None:
        """Raises EnoughLearned where patience has run out."""
        if report.step % self._every and not run.finished:
            return
        look = self._examiner.look(1.0, other_size=False)
        score = held_out_score(look)
        if self.best is None or score > max(s for _, s in self.scores):
            self.best = run.snapshot()
        self.scores.append((report.step, score))
        self._newest = look
        if self._on_glance is not None:
            self._on_glance(Glance(report.step, look, score))
        if self._patience and self._looks_since_best() >= self._patience:
            raise EnoughLearned

    def comparison(self) -> Comparison | None:
        """The newest look judged against the base model, None before the first."""
        return None if self._newest is None else self._examiner.compare(self._newest)

    def _looks_since_best(self) -> int:
        values = [score for _, score in self.scores]
        return len(values) - 1 - values.index(max(values))


def held_out_score(look: Look) -> float:
    """Geometric mean of P(answer), P(keep) and P(prompt fits), of those that are known, in [0, 1].

    The soft score of GenEval 2: it falls where any of them falls.
    """
    known = [look.measures[name] for name in JUDGED_BY if name in look.measures]
    return math.exp(sum(math.log(max(p, 1e-6)) for p in known) / len(known))
