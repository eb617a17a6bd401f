# pyright: reportMissingImports=false
"""Our LoRA in a ComfyUI model: ComfyUI's own trainable weight adapter, applied beside each layer (bypass).

The base weights are never touched, so it works on quantised and offloaded ones and beside the user's own LoRAs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import torch
from comfy.weight_adapter.bypass import BypassForwardHook
from comfy.weight_adapter.lora import LoraDiff
from torch import Tensor, nn

from ...core.errors import GeneratorError
from ..architectures.flux import COMFYUI_PREFIX, native_modules
from ..lora import LoraWeights

# Full names of the adapted layers, by the class of the diffusion model: attention and feed-forward of every block.
TARGETS: Mapping[str, str] = {
    "UNetModel": r".*\.transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))",
}
ANY_TRANSFORMER = (
    r"(.*\.)?\w*(blocks|layers)\.\d+\."
    r"((.*[._])?(\w*attn\w*|\w*attention\w*|mlp\w*|ff\w*|feed_forward\w*)\..*|linear[12])"  # as in Flux's single blocks
)


def target_layers(model: Any) -> dict[str, nn.Module]:
    """The layers to adapt in a ComfyUI diffusion model, by full name.

    Raises:
        GeneratorError: the model has no block with attention or feed-forward layers that we know.
    """
    if isinstance(model, comfy.ldm.flux.model.Flux):
        names = [name for name, _ in native_modules(len(model.double_blocks), len(model.single_blocks))]
    else:
        pattern = re.compile(TARGETS.get(type(model).__name__, ANY_TRANSFORMER))
        names = [name for name, module in model.named_modules() if pattern.fullmatch(name) and _is_linear(module)]
    if not names:
        raise GeneratorError(
            f"Found no attention or feed-forward layer to train in a {type(model).__name__}. "
            "Use a transformer or UNet model such as Flux, SD 1.x or SDXL."
        )
    return {name: model.get_submodule(name) for name in names}


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


class BypassLora(LoraDiff):
    """ComfyUI's LoRA adapter, computed in float32 whatever the model's dtype, exactly absent at multiplier 0."""

    multiplier: float

    def bypass_forward(self, org_forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = org_forward(x, *args, **kwargs)
        if self.multiplier == 0:
            return out
        return out + self.h(x.to(self.lora_down.weight.dtype), out).to(out.dtype)


class ComfyLora:
    """The trainable LoRA of one diffusion model, applied only while `injected`."""

    def __init__(self, layers: Mapping[str, nn.Module], weights: LoraWeights) -> None:
        self.rank, self.alpha = weights.rank, weights.alpha
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
        hooks = [BypassForwardHook(layer, self._adapters[name]) for name, layer in self._layers.items()]
        try:
            for hook in hooks:
                hook.inject()
            yield
        finally:
            for name, layer in self._layers.items():
                layer.__dict__.pop("forward", None)
                if before[name] is not None:
                    layer.__dict__["forward"] = before[name]

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """While entered, the LoRA counts `scale` times; at 0 it is skipped, which leaves the exact base model."""
        before = {name: getattr(adapter, "multiplier", 1.0) for name, adapter in self._adapters.items()}
        try:
            for adapter in self._adapters.values():
                adapter.multiplier = scale
            yield
        finally:
            for name, adapter in self._adapters.items():
                adapter.multiplier = before[name]


def layer_shapes(layers: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(in, out) features of linear layers, from their own attributes: a quantised weight's shape may differ."""
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def to_native(lora: LoraWeights) -> dict[str, Tensor]:
    """The LoRA under ComfyUI's own key names, float32 copies on the CPU."""
    state: dict[str, Tensor] = {}
    for name, (down, up) in lora.matrices.items():
        state[f"{COMFYUI_PREFIX}{name}.lora_down.weight"] = _copy(down)  # [r, in]
        state[f"{COMFYUI_PREFIX}{name}.lora_up.weight"] = _copy(up)  # [out, r]
        state[f"{COMFYUI_PREFIX}{name}.alpha"] = torch.tensor(float(lora.alpha))
    return state


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
