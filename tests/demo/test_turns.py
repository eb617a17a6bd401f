"""Generator and critic taking turns on one device: each is away while the other works."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from dual_process import demo
from dual_process.demo.controls import horizon_control
from dual_process.distillation import Anchors, distill

POOL = 4
RECIPE = replace(
    horizon_control(0.3).recipe, train_steps=3, batch_size=2, gradient_accumulation=2, anchors=Anchors(pool=POOL)
)


class Turns:
    """A model's weights are NaN but while `session` is entered."""

    def __init__(self, modules, session):
        self.weights = [(t, t.data) for m in modules for t in m.parameters() if not t.requires_grad]
        self.session, self.depth, self.count = session, 0, 0
        self.leave()

    def leave(self):
        for tensor, data in self.weights:
            tensor.data = torch.full_like(data, torch.nan)

    @contextmanager
    def __call__(self, **options):
        if self.depth == 0:
            self.count += 1
            for tensor, data in self.weights:
                tensor.data = data
        self.depth += 1
        try:
            with self.session(**options) as value:
                yield value
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.leave()


def trained(generator, critic, **options):
    result = distill(generator, critic, RECIPE, **options)
    return generator.lora_state_dict(), [report.loss for report in result.history]


def test_the_lora_is_that_of_both_resident(monkeypatch):
    generator, critic = demo.load(RECIPE.prompts)
    resident, losses = trained(generator, critic)
    making = Turns([generator.network, generator.vae], generator.training)
    judging = Turns([critic.model], critic.resident)
    sample = generator.sample

    def sample_in_turn(*args, **kwargs):
        with making():
            return sample(*args, **kwargs)

    monkeypatch.setattr(generator, "training", making)
    monkeypatch.setattr(generator, "sample", sample_in_turn)
    monkeypatch.setattr(critic, "resident", judging)
    in_turns, same_losses = trained(generator, critic, take_turns=True)
    batches = RECIPE.train_steps * RECIPE.gradient_accumulation
    of_pool = POOL // RECIPE.batch_size
    # The critic comes once for the pictures with the line and once for those of the keep questions.
    assert (making.count, judging.count) == (2 * batches + of_pool, 2 * (batches + of_pool))
    assert same_losses == pytest.approx(losses, rel=1e-6)
    for name, tensor in resident.items():
        assert (in_turns[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
    assert all(tensor.norm() > 0 for name, tensor in resident.items() if "lora_B" in name)


def test_weights_that_are_away_would_be_noticed():
    generator, _ = demo.load(RECIPE.prompts)
    Turns([generator.network, generator.vae], generator.training)
    assert generator.sample([0], [0]).isnan().all()
