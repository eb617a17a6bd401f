"""A user's module shared without ever changing it."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import GeneratorError
from ...core.quantization import taken_over
from .quantized import quantized_layers

Module = TypeVar("Module", bound=nn.Module)


def share_weights(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """A second module of the same structure in eval mode that shares the weights of `module`.

    Adapters, modes and flags set on it leave the user's module alone. Weights that lie on another device or have
    another dtype are converted into copies of its own.

    Raises:
        GeneratorError: `module` has offloading hooks, which move weights behind our back, or is quantised otherwise
            than by bitsandbytes.
    """
    _refuse_hooks(module)
    quantized: list[Any] = quantized_layers(module)
    packed = {id(layer.weight) for layer in quantized}
    tensors = [t for t in chain(module.parameters(), module.buffers()) if id(t) not in packed]
    shared: dict[int, Any] = {id(t): _place(t, device, dtype) for t in tensors}
    for layer in quantized:
        ours = taken_over(layer, GeneratorError).to(device)
        ours.bias = None if layer.bias is None else shared[id(layer.bias)]
        shared[id(layer)] = ours
    return copy.deepcopy(module, shared).eval()


def _place(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        moved = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
    if moved is tensor or not isinstance(tensor, nn.Parameter):
        return moved
    return nn.Parameter(moved, requires_grad=tensor.requires_grad)


def _refuse_hooks(module: nn.Module) -> None:
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if hasattr(part, "_hf_hook") or (registry is not None and registry.hooks):
            raise GeneratorError(
                f"Expected a pipeline without hooks, but its {type(module).__name__} has them (CPU offload, group "
                "offload or caching). Load the pipeline again without them, or call remove_all_hooks() first."
            )
