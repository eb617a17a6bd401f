# pyright: reportMissingImports=false
"""ComfyUI's modules for a while with weights, or a forward, of our own, without a copy and without leaving a trace.

ComfyUI's nodes run in inference mode, so the weights that its loaders make are inference tensors, which autograd
refuses to save. A tensor made outside inference mode over the same storage is a plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

Weights = list[tuple[dict[str, Any], str, Any]]  # a table of parameters, buffers or attributes, a name, a tensor
ABSENT: Any = object()  # in place of a value: there is nothing of this name


def plain_weights(module: nn.Module) -> Weights:
    """The module's parameters and buffers as frozen plain tensors over the same memory.

    Those of other packs' classes keep their class and attributes, by which a layer knows how to unpack them.
    """
    weights: Weights = []
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None or (_is_foreign(tensor) and not tensor.is_inference()):
                    continue
                value = plain(tensor) if tensor.is_inference() else tensor.detach()
                if table is part._parameters and not _is_foreign(tensor):
                    value = nn.Parameter(value, requires_grad=False)
                weights.append((table, name, value))
    return weights


def _is_foreign(tensor: Tensor) -> bool:
    return not isinstance(tensor, QuantizedTensor) and type(tensor) not in (Tensor, nn.Parameter)


def plain_attributes(thing: Any) -> Weights:
    """The inference tensors among an object's attributes, as plain tensors over the same memory."""
    table = vars(thing)
    return [
        (table, n, plain(value)) for n, value in table.items() if isinstance(value, Tensor) and value.is_inference()
    ]


def plain(tensor: Any) -> Tensor:
    """A tensor over the same storage that autograd accepts; make it outside inference mode."""
    if isinstance(tensor, QuantizedTensor):
        params = tensor._params
        fields = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        ours = {name: plain(value) if isinstance(value, Tensor) else value for name, value in fields.items()}
        return QuantizedTensor(plain(tensor._qdata), tensor._layout_cls, type(params)(**ours))
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if not _is_foreign(tensor):
        return alias
    ours = Tensor._make_subclass(type(tensor), alias)
    held = vars(tensor).items()
    vars(ours).update({n: plain(v) if isinstance(v, Tensor) and v.is_inference() else v for n, v in held})
    return ours


@contextmanager
def placed(weights: Weights) -> Iterator[None]:
    """While entered, these tensors are the modules' weights; the very objects before are put back afterwards."""
    before = [(table, name, table.get(name, ABSENT)) for table, name, _ in weights]
    try:
        _put(weights)
        yield
    finally:
        _put(before)


def _put(weights: Weights) -> None:
    for table, name, value in weights:
        if value is ABSENT:
            table.pop(name, None)
        else:
            table[name] = value


@contextmanager
def overridden(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Another method for one module; its own attributes are exactly as before afterwards."""
    before = module.__dict__.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop(name, None)
        else:
            setattr(module, name, before)


def overridden_forward(module: nn.Module, forward: Any) -> AbstractContextManager[None]:
    """Another forward for one module, as `overridden` does."""
    return overridden(module, "forward", forward)
