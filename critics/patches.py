"""Patch embeddings as matrix products, whose gradient takes a small part of the time that a convolution's takes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def multiply_patches(model: nn.Module) -> None:
    """From here on, convolutions of the model that cut their input into patches are matrix products.

    Values and gradients are the same but for rounding. Weights stay where they are, and are read when they are needed.
    """
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Conv3d) and _cuts_patches(module) and "forward" not in vars(module):
            module.forward = partial(_multiply, module, module.forward)


def _cuts_patches(conv: Any) -> bool:
    apart = conv.stride == conv.kernel_size and not any(conv._reversed_padding_repeated_twice)
    return apart and conv.groups == 1 and all(step == 1 for step in conv.dilation)


def _multiply(conv: Any, forward: Any, x: Tensor) -> Tensor:
    sides = conv.kernel_size
    fits = x.ndim == 2 + len(sides) and all(n % side == 0 for n, side in zip(x.shape[2:], sides, strict=True))
    if not fits:
        return forward(x)
    for axis, side in enumerate(sides):  # [N, C, H, W] -> [N, C, h, side, w, side], or with three axes
        x = x.unflatten(2 + 2 * axis, (-1, side))
    where, inside = range(2, x.ndim, 2), range(3, x.ndim, 2)
    patches = x.permute(0, *where, 1, *inside).flatten(1 + len(sides))  # [N, h, w, C · side · side]
    return F.linear(patches, conv.weight.flatten(1), conv.bias).movedim(-1, 1)
