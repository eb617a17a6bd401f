"""Apply Overlay shows what critics see in training."""

from __future__ import annotations

import golden
import pytest
import torch

from dual_process.distillation import Question
from dual_process.distillation.asking import Samples
from dual_process.distillation.loss import vqa_loss

pytestmark = pytest.mark.comfyui


class Watching:
    """A critic that remembers what it saw."""

    def log_likelihood(self, images, questions):
        self.seen = images.detach()
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, len(questions))


@pytest.mark.parametrize("name", golden.EACH)
def test_the_preview_equals_the_composite_of_training_to_one_of_255(run, name):
    picture = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2  # as a decoder makes it
    overlay, critic = golden.EACH[name], Watching()
    vqa_loss({"default": critic}, Samples(picture, [0], None), [Question("Is it?", overlay=overlay)])
    shown = run("ApplyOverlay", image=picture.clamp(0, 1).movedim(1, -1), overlay=overlay)[0]
    saved = (shown * 255).byte() / 255  # as ComfyUI writes a picture
    assert (saved.movedim(-1, 1) - critic.seen).abs().max() <= 1.001 / 255
    assert (critic.seen - picture.clamp(0, 1)).abs().max() > 0.3
