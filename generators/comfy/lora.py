# pyright: reportMissingImports=false
"""Our LoRA in a ComfyUI model: ComfyUI's own trainable weight adapter, applied beside each layer (bypass).

The base weights are never touched, so it works on quantised and offloaded ones and beside the user's own LoRAs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy.weight_adapter.lora import LoraDiff
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import GeneratorError
from ..architectures import Architecture
from ..architectures.layers import splits
from ..lora import LoraWeights
from ..targets import chosen
from ..widening import widening_linear
from .blocks import blocks, is_linear


def target_layers(network: nn.Module, architecture: Architecture | None, targets: str) -> dict[str, nn.Module]:
    """The layers to adapt in a ComfyUI diffusion model, by full name.

    Args:
        architecture: whose table names them; None for a model that is in no table, whose blocks are then searched.
        targets: see `targets.chosen`.

    Raises:
        GeneratorError: the model has no block with attention, or no layer is chosen.
    """
    modules = dict(network.named_modules())
    known = splits(architecture.blocks if architecture else (), modules, "comfyui")
    layers = [(name, *parts) for name, parts in known if name in modules]
    if not layers:
        inside = tuple(f"{name}." for name in blocks(network))
        layers = [(name,) for name, module in modules.items() if name.startswith(inside) and is_linear(module)]
    if not layers:
        raise GeneratorError(
            f"Found no block with attention to train in a {type(network).__name__}. Use a transformer or UNet model "
            "such as Flux, SD 1.x or SDXL."
        )
    picked = chosen(layers, targets)
    return {names[0]: modules[names[0]] for names, take in zip(layers, picked, strict=True) if take}


class BypassLora(LoraDiff):
    """ComfyUI's LoRA adapter, computed in float32 whatever the model's dtype, exactly absent at multiplier 0."""

    multiplier: float

    def bypass_forward(self, org_forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = org_forward(x, *args, **kwargs)
        if self.multiplier == 0:
            return out
        if getattr(self, "is_conv", False) or x.dtype == self.lora_down.weight.dtype:
            return out + self.h(x.to(self.lora_down.weight.dtype), out).to(out.dtype)
        hidden = F.linear(widening_linear(x, self.lora_down.weight), self.lora_up.weight)
        return out + (hidden * (self.alpha / self.rank * self.multiplier)).to(out.dtype)


class ComfyLora:
    """The trainable LoRA of one diffusion model, applied only while `injected`."""

    def __init__(self, layers: Mapping[str, nn.Module], weights: LoraWeights) -> None:
        self.rank, self.alpha, self._strength = weights.rank, weights.alpha, 1.0
        self._layers = layers
        device = comfy.model_management.get_torch_device()  # from the start: an optimiser's state must lie there, too
        with torch.inference_mode(False):
            self._adapters = {
                name: BypassLora((up.clone(), down.clone(), float(weights.alpha), None, None, None)).to(device)
                for name, (down, up) in weights.matrices.items()
            }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable float32 tensors, "<module>.lora_A" [rank, in] and "<module>.lora_B" [out, rank]."""
        found: dict[str, nn.Parameter] = {}
        for name, adapter in self._adapters.items():
            found[f"{name}.lora_A"], found[f"{name}.lora_B"] = adapter.lora_down.weight, adapter.lora_up.weight
        return found

    def weights(self) -> LoraWeights:
        """The present weights, not copied."""
        matrices = {name: (a.lora_down.weight, a.lora_up.weight) for name, a in self._adapters.items()}
        return LoraWeights(matrices, self.rank, self.alpha)

    @contextmanager
    def injected(self) -> Iterator[None]:
        """While entered, the layers' outputs hold the LoRA's; afterwards each layer's attributes are as before."""
        before = {name: layer.__dict__.get("forward") for name, layer in self._layers.items()}
        hooks = [BypassForwardHook(layer, self._adapters[name], self._strength) for name, layer in self._layers.items()]
        try:
            for hook in hooks:
                hook.inject()
            yield
        finally:
            for name, layer in self._layers.items():
                layer.__dict__.pop("forward", None)
                if before[name] is not None:
                    layer.__dict__["forward"] = before[name]

    def count(self, times: float) -> None:
        """From now on the LoRA counts so many times, also in backward passes that run layers again."""
        self._strength = times
        self._set(times)

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """While entered, the LoRA counts `scale` times; at 0 it is skipped, which leaves the exact base model."""
        try:
            self._set(scale * self._strength)
            yield
        finally:
            self._set(self._strength)

    def _set(self, strength: float) -> None:
        for adapter in self._adapters.values():
            adapter.multiplier = strength
