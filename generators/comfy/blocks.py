"""The blocks of a ComfyUI diffusion model, found by structure."""

from __future__ import annotations

from torch import nn

from ..targets import kind


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The repeated parts that hold attention, by full name: items of lists, of nested lists the innermost."""
    lists = {name: module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    with_attention = {name for name, module in lists.items() if any(_has_attention(item) for item in module)}
    innermost = [n for n in with_attention if not any(o.startswith(f"{n}.") for o in with_attention)]
    return {f"{name}.{i}": item for name in lists if name in innermost for i, item in enumerate(lists[name])}


def _has_attention(item: nn.Module) -> bool:
    return any(name and is_linear(module) and kind([name]) == "attention" for name, module in item.named_modules())


def is_linear(module: nn.Module) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")
