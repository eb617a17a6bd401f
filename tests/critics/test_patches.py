"""Patch embeddings as matrix products: what PyTorch's convolutions give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dual_process.critics.patches import multiply_patches

EMBEDDINGS = {
    "2-D": (nn.Conv2d(3, 5, 4, stride=4, padding="valid"), (2, 3, 12, 8)),
    "3-D": (nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=False), (6, 3, 2, 4, 4)),
    "a rest is cut off": (nn.Conv2d(3, 5, 4, stride=4), (2, 3, 13, 9)),
    "overlaps": (nn.Conv2d(3, 5, 3, stride=2), (1, 3, 9, 9)),
    "padded": (nn.Conv2d(3, 5, 4, stride=4, padding=2), (1, 3, 8, 8)),
    "in groups": (nn.Conv2d(4, 6, 2, stride=2, groups=2), (1, 4, 8, 8)),
    "dilated": (nn.Conv2d(3, 5, 2, stride=2, dilation=2), (1, 3, 8, 8)),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_values_and_gradients(kind, monkeypatch):
    conv, shape = EMBEDDINGS[kind]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = conv(image)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), image)

    multiply_patches(nn.Sequential(conv))
    if kind in ("2-D", "3-D"):  # no convolution is left
        monkeypatch.setattr(type(conv), "_conv_forward", None)
    found = conv(image)
    (ours,) = torch.autograd.grad((found * weights).sum(), image)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-5)


def test_weights_are_those_of_the_moment():
    conv = nn.Conv2d(3, 5, 4, stride=4)
    multiply_patches(conv)
    multiply_patches(conv)  # again: nothing happens
    conv.weight.data = torch.zeros_like(conv.weight)
    torch.testing.assert_close(conv(torch.rand(1, 3, 4, 4))[0, :, 0, 0], conv.bias)
