"""The rows that the process is measured against."""

from __future__ import annotations

import torch
from fake_models import SlotPainter, SlotThinker, picture_of, plan

from dual_process.process.baselines import best_of_n, optimise_latent


def test_the_best_of_n_is_what_the_thinker_holds_most_of():
    class Luck(SlotPainter):
        def draft(self, prompt, seed):
            return self._made("draft", prompt, dict.fromkeys(range(len(self.calls) % 3), 1.0))

    painter = Luck()
    best = best_of_n(plan(), painter, SlotThinker(), 5, seed=0)
    assert len(painter.calls) == 5
    assert torch.equal(best.picture, picture_of({0: 1.0, 1: 1.0}))


def test_a_latent_moves_to_what_the_score_asks_for():
    start = torch.zeros(1, 4)
    moved = optimise_latent(start, torch.sigmoid, lambda picture: picture.mean(), steps=20, rate=0.1)
    assert torch.sigmoid(moved).min() > 0.8
    assert not start.any()
