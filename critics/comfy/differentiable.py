# pyright: reportMissingImports=false
"""Gradients through a text encoder that ComfyUI has loaded; its code as shipped carries none.

What stands in the way: weights made in inference mode, which autograd refuses to save; sums and products written into
`out=` tensors; a fused rotary embedding without a backward pass. Weights in another dtype than the activations' are
cast layer by layer, and autograd would keep every copy: so each block is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ...comfy_host.weights import Weights, overridden_forward, placed, plain_weights


@contextmanager
def differentiable(model: nn.Module, blocks: Iterable[nn.Module], plain: bool = False) -> Iterator[None]:
    """While entered, forward passes through `model` carry gradients; the backward pass may come afterwards.

    Each of `blocks` is computed again in the backward pass, with the weights that it has now. Every weight and
    attribute is the one that was there before on leaving, also after an error. Nothing is done where gradients are
    switched off. With `plain` the weights are plain tensors already, and remain so until the backward pass is over.
    """
    if not torch.is_grad_enabled():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(placed([] if plain else plain_weights(model)))
        stack.enter_context(_Differentiable())
        for block in blocks:
            stack.enter_context(_recomputed(block, [] if plain else plain_weights(block)))
        yield


class _Differentiable(TorchFunctionMode):
    """Replaces the operations without a gradient that ComfyUI's language models use."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.add, torch.mul) and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            kwargs.pop("out", None)  # ComfyUI goes on with what is returned
        if getattr(func, "__name__", "").split(".")[0] == "apply_rope_split_half1":
            return rotate_halves(*args, **kwargs)
        return func(*args, **kwargs)


def rotate_halves(x: Tensor, matrices: Tensor) -> Tensor:
    """Rotary embedding: the pairs (x[k], x[k + d/2]) of x [..., d] times matrices [..., d/2, 2, 2]."""
    first, second = x.to(matrices.dtype).chunk(2, dim=-1)
    halves = [matrices[..., row, 0] * first + matrices[..., row, 1] * second for row in range(2)]
    return torch.cat(halves, dim=-1).type_as(x)


@contextmanager
def _recomputed(block: nn.Module, weights: Weights) -> Iterator[None]:
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with placed(weights), _Differentiable():  # anew in the backward pass, which may run in another thread
            return forward(*args, **kwargs)

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    with overridden_forward(block, recomputed):
        yield
