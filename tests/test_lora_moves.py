"""Every tensor of a LoRA learns: B in the first step, and A, which has no gradient while B is zero, in the second."""

from __future__ import annotations

import pytest
import torch
from tiny_flux import PROMPTS, build_pipeline
from torch.nn import functional as F

from dual_process import demo
from dual_process.demo.controls import horizon_control
from dual_process.distillation import Anchors, ModelInfo, Question, Recipe, Run
from dual_process.generators import load_generator


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Beholder:
    """log P = log σ(w·image) for pictures of any size."""

    info = ModelInfo("beholder", "fake-vlm", "float32", "1" * 64)

    def log_likelihood(self, images, questions):
        direction = torch.randn(images[0].numel(), generator=torch.Generator().manual_seed(1)) / 10
        return F.logsigmoid(images.flatten(1) @ direction)[:, None].expand(-1, len(questions))


def tiny(flavour):
    pipeline = build_pipeline(flavour)
    generator = load_generator(pipeline, PROMPTS, height=64, width=96, num_inference_steps=3)
    return generator, Beholder(), Recipe((Question("Is it?"),), train_steps=2, rank=4)


def embedded():
    recipe = horizon_control(train_steps=2, batch_size=1, anchors=Anchors(pool=2, least=1)).recipe
    return *demo.load(recipe.prompts), recipe


@pytest.mark.parametrize(
    "make", [lambda: tiny("schnell"), lambda: tiny("dev"), embedded], ids=["tiny schnell", "tiny dev", "demo"]
)
def test_every_tensor_of_the_lora_moves(make):
    generator, critic, recipe = make()
    with Run(generator, critic, recipe) as run:
        before = tensors(generator)
        assert {name[-1] for name in before} == {"A", "B"}
        assert len(before) >= 2 * 22  # the linear layers of a double block and two single ones
        for moving in ("B", "AB"):
            run.step()
            after = tensors(generator)
            moved = {name for name in before if not torch.equal(after[name], before[name])}
            assert moved == {name for name in before if name[-1] in moving}
            before = after


def tensors(generator):
    return {name: parameter.detach().clone() for name, parameter in generator.lora_parameters().items()}
