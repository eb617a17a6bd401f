"""A critic whose layers come to the device one by one."""

from __future__ import annotations

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
