"""A critic whose layers come to the device one by one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from pretended import PretendedDevice

from dual_process.core.errors import CriticError
from dual_process.core.streaming import blocks_of
from dual_process.critics import load_critic


def gradient(critic, images, questions):
    leaf = images.clone().requires_grad_()
    with critic.resident():
        scores = critic.log_likelihood(leaf, questions)
        (found,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), found


def test_the_gradients_are_those_of_a_resident_one(folders, family, images, ask, monkeypatch):
    questions = [ask("is the picture red ?"), ask("what color do you see ?", "not sure")]
    resident = load_critic(folders[family], device="cpu", gradient_checkpointing=True)
    critic = load_critic(folders[family], device="cpu", gradient_checkpointing=True, offload="blocks")
    blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(critic.model))}
    device = PretendedDevice({"rest": [critic.model], **blocks}, monkeypatch)
    wanted = gradient(resident, images, questions)
    for _ in range(2):
        found = gradient(critic, images, questions)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert device.is_empty()
    assert device.most_blocks == 2  # the one that works, and the next
    assert len({name for name in device.came() if name.startswith("block")}) >= 4


def test_other_words_are_refused(folders):
    with pytest.raises(CriticError, match="offload as True, False or 'blocks', got 'layers'"):
        load_critic(next(iter(folders.values())), offload="layers")


def test_who_is_at_hand_does_not_come_again(folders, images, ask, monkeypatch):
    visits = []

    def visiting(modules, device):
        visits.append(device)
        return nullcontext()

    monkeypatch.setattr("dual_process.critics.transformers_critic.visiting", visiting)
    critic = load_critic(next(iter(folders.values())), device="cpu")
    with critic.resident():
        critic.log_likelihood(images, [ask("is the picture red ?")])
        critic.answer(images, "is the picture red ?", max_new_tokens=1)
    assert len(visits) == 1
    critic.log_likelihood(images, [ask("is the picture red ?")])
    assert len(visits) == 2
