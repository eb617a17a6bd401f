"""A critic that sees larger pictures shrunk: the values of pictures shrunk before, and fewer pixels for the model."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dual_process.core.errors import CriticError
from dual_process.critics import load_critic
from dual_process.critics.preprocessing import shrunk

ANY_SIZE = ("qwen", "qwen3", "qwen3_5", "idefics2", "pixtral", "mistral3")  # see small pictures small
ONE_SIZE = ("idefics3", "smolvlm", "llava", "internvl", "gemma3", "gemma4", "paligemma")
SIDE, SHRUNK = 40, [35, 46]  # of pictures of 84 × 112 pixels


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 84, 112, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def questions(ask):
    return [ask("is the picture red ?"), ask("what color do you see in it ?", "not sure")]


@pytest.fixture(params=ANY_SIZE)
def family(request):
    return request.param


@pytest.fixture
def small(folders, family):
    return load_critic(folders[family], device="cpu", max_size=SIDE)


def shrink(pictures):
    return resize(pictures, SHRUNK, InterpolationMode.BICUBIC, antialias=True)


def test_values_are_those_of_pictures_shrunk_before(small, naive, pictures, questions, monkeypatch):
    monkeypatch.setattr(naive.processor.image_processor, "size", small.processor.image_processor.size)
    values = small.log_likelihood(pictures, questions)
    expected = [[naive.log_likelihood(p, q.text, q.answer.split()) for q in questions] for p in shrink(pictures)]
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_gradient_goes_through_the_shrinking(small, pictures, questions):
    pictures.requires_grad_()
    (found,) = torch.autograd.grad(small.log_likelihood(pictures, questions).sum(), pictures)
    leaf = shrink(pictures.detach()).requires_grad_()
    (inner,) = torch.autograd.grad(small.log_likelihood(leaf, questions).sum(), leaf)
    (expected,) = torch.autograd.grad(shrink(pictures), pictures, inner)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_the_model_sees_less(small, critic, pictures, ask, passed_to_model):
    seen = [passed_to_model(c, lambda c=c: c.log_likelihood(pictures, [ask("red ?")])) for c in (small, critic)]
    assert seen[0]["pixel_values"].numel() < seen[1]["pixel_values"].numel()
    assert small.answer(pictures, "red ?", 2) == small.answer(shrink(pictures), "red ?", 2)


def test_smaller_pictures_stay_as_they_are(pictures):
    assert shrunk(pictures, 98) is pictures  # 84 · 112 < 98²
    assert shrunk(pictures, 96).shape[-2:] == (83, 111)


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_family_with_one_size_refuses(folders, name):
    with pytest.raises(CriticError, match="nothing would be saved"):
        load_critic(folders[name], device="cpu", max_size=SIDE)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "64"])
def test_what_is_no_size(folders, wrong):
    with pytest.raises(CriticError, match="max_size as None or a whole number"):
        load_critic(folders["qwen"], device="cpu", max_size=wrong)
