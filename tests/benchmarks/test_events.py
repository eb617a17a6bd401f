"""The ledger moves the weights that a device would be given, in the same order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from full_size_models import GeneratorModels, small_qwen
from full_size_plans import STREAMED, Part, Plan
from full_size_step import build_critic, build_generator, homes, moving, recipe
from ledger import without_numbers
from pretended import PretendedDevice
from tiny_flux import WIDTH, build_transformer, build_vae

from dual_process.distillation.run import Run
from dual_process.generators.architectures.flux import FLUX

GENERATOR = GeneratorModels(
    FLUX, lambda: build_transformer(False), build_vae, {"sequence": (1, 4, WIDTH), "pooled": (1, WIDTH)}
)
CRITIC = small_qwen(layers=2, heads=1)
IN_TURNS = Part(place="in its turn")
PLANS = {
    "streamed": Plan(STREAMED, STREAMED),
    "turns": Plan(IN_TURNS, IN_TURNS),
}


def build(plan, parts):
    generator = build_generator(GENERATOR, 64, plan.generator, torch.float32)
    return generator, build_critic(CRITIC, plan.critic, torch.float32, parts)


def two_steps(generator, critic, plan):
    with Run(generator, critic, recipe(2), take_turns=plan.turns) as run:
        return [run.step()[0].loss for _ in range(2)]


@pytest.mark.parametrize("name", PLANS)
def test_come_and_leave_as_on_a_device(name, monkeypatch):
    plan, parts = PLANS[name], CRITIC.parts()
    generator, critic = build(plan, parts)
    held = {
        home: [SimpleNamespace(parameters=lambda tensors=tensors: tensors, buffers=lambda: ())]
        for home, tensors in homes(generator, critic, plan).items()
    }
    with monkeypatch.context() as patched:
        device = PretendedDevice(held, patched)
        losses = two_steps(generator, critic, plan)
    assert all(0 < loss < 100 for loss in losses)  # not NaN: what worked was there
    with without_numbers() as ledger:
        generator, critic = build(plan, parts)
        with moving(ledger, homes(generator, critic, plan)) as events:
            two_steps(generator, critic, plan)
    assert len(events) >= 20
    assert events == device.events
