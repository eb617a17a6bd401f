"""Weights of 8 and 4 bits: the gradient to the image is that of the numbers that the weights stand for."""

import pytest
from torch import nn
from torch.nn.functional import cosine_similarity

from dual_process.critics import load_critic
from dual_process.distillation import CriticError

bnb = pytest.importorskip("bitsandbytes")
FAMILY = "qwen"


def dequantised(layer):
    """The numbers that a quantised layer's weight stands for, [out, in]."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    rows, scale = (layer.weight.data, layer.weight.SCB) if layer.state.CB is None else (layer.state.CB, layer.state.SCB)
    return rows.float() * scale[:, None] / 127


@pytest.fixture
def pair(folders, request):
    """A quantised critic, and a float32 one with the numbers that its weights stand for."""
    bits = request.param
    quantised = load_critic(folders[FAMILY], device="cpu", dtype="float32", quantization=bits)
    plain = load_critic(folders[FAMILY], device="cpu", dtype="float32")
    count = 0
    for name, layer in quantised.model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            target = plain.model.get_submodule(name)
            assert isinstance(target, nn.Linear)
            target.weight.data = dequantised(layer).reshape(target.weight.shape).float()
            count += 1
    assert count > 10
    return quantised, plain


def judged(critic, images, ask):
    leaf = images.clone().requires_grad_()
    scores = critic.log_likelihood(leaf, [ask("is the picture red ?"), ask("dark ?", "not sure")])
    scores.sum().backward()
    return scores.detach(), leaf.grad


@pytest.mark.parametrize(("pair", "bound"), [("4bit", 1e-4), ("8bit", 0.1)], indirect=["pair"])
def test_gradient_is_that_of_the_numbers(pair, bound, images, ask):
    """8 bits: the activations are rounded to 8 bits as well, the gradient is not."""
    ours, theirs = (judged(critic, images, ask) for critic in pair)
    assert (ours[0] - theirs[0]).abs().max() <= bound * theirs[0].abs().max()
    assert cosine_similarity(ours[1].flatten(), theirs[1].flatten(), dim=0) >= 1 - bound / 10
    assert (ours[1] - theirs[1]).norm() <= 2 * bound * theirs[1].norm()


@pytest.mark.parametrize("pair", ["4bit", "8bit"], indirect=True)
def test_it_is_smaller_and_says_so(pair):
    quantised, plain = (sum(p.numel() * p.element_size() for p in c.model.parameters()) for c in pair)
    assert quantised < 0.8 * plain
    assert pair[0].info.dtype in ("4bit, float32", "8bit, float32")
    assert pair[0].info.weights_sha256 != pair[1].info.weights_sha256


def test_it_cannot_be_moved(folders):
    with pytest.raises(CriticError, match="no offload with quantization='8bit'"):
        load_critic(folders[FAMILY], device="cpu", quantization="8bit", offload=True)
