"""Stand-ins for quantised layers that need no kernels: the same memory and arithmetic, numbers of no use."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 64  # weights that share a scale in NF4


class QuantizedLinear(nn.Linear):
    """A linear layer of packed weights, widened for each product, forward and backward.

    Args:
        plain: the layer that it stands for; its bias stays as it is.
        bits: 8, int8 with a scale for each row; or 4, NF4 with a scale for each 64 weights (no double quantisation).
    """

    def __init__(self, plain: nn.Linear, bits: Literal[8, 4]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias, self.bits = plain.bias, bits
        size = plain.weight.numel()
        # Made of the weight, so that they are fake where it is.
        packed = plain.weight.to(torch.int8) if bits == 8 else plain.weight.flatten()[: size // 2].to(torch.uint8)
        scale = plain.weight[:, 0] if bits == 8 else plain.weight.flatten()[: -(-size // BLOCK)]
        self.weight = nn.Parameter(packed.clone(), requires_grad=False)
        self.register_buffer("scale", scale.float().clone(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input, self)  # type: ignore[return-value]

    def widened(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.out_features, self.in_features)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.widened(x), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.widened(grads[0]), None


def quantize(model: nn.Module, bits: Literal[8, 4]) -> None:
    """Replaces all linear layers but the head, as transformers and diffusers do."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    for parent in [*model.modules()]:
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child is not head:
                setattr(parent, name, QuantizedLinear(child, bits))
