"""A LoRA's float32 input costs no memory of its own: the layer's own input is kept, and widened anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _WideningLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(weight.dtype), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        of_x = (grad @ weight).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = grad.flatten(0, -2).T @ x.flatten(0, -2).to(weight.dtype)
        return of_x, of_weight


def widening_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x.to(weight.dtype), weight)` with the same numbers, keeping x as it is for the backward pass.

    Args:
        x: [..., in], in the model's dtype. The layers that share an input keep it once.
        weight: [out, in].
    """
    if x.dtype == weight.dtype:
        return F.linear(x, weight)
    return _WideningLinear.apply(x, weight)  # type: ignore[return-value]


class WideningLinear(nn.Linear):
    """Takes inputs of any dtype, and gives outputs in its weight's."""

    def forward(self, input: Tensor) -> Tensor:
        return widening_linear(input, self.weight)
