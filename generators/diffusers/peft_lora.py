"""A trainable LoRA inside a diffusers model, by PEFT, beside whatever adapters the user has loaded."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...core.errors import GeneratorError
from ..lora import LoraWeights
from ..widening import WideningLinear

ADAPTER, SLIDER_ADAPTER = "dual_process", "dual_process_slider"


class AttachedLora:
    """Our LoRA as it sits in a model; the user's own adapters keep their state and are put back on removal.

    Args:
        device: where the model computes, and so the LoRA lies, while the model's weights may wait elsewhere; None is
            where they are.

    Raises:
        GeneratorError: another adapter is fused into a layer, where PEFT would silently skip ours.
    """

    def __init__(
        self, model: Any, weights: LoraWeights, adapter: str = ADAPTER, device: torch.device | None = None
    ) -> None:
        self.model, self.adapter, self._strength = model, adapter, 1.0
        self.rank, self.alpha = weights.rank, weights.alpha
        self._before = _adapter_states(model)
        _inject(model, weights, self._before, adapter, device)
        self._layers: dict[str, Any] = {name: model.get_submodule(name) for name in weights.matrices}
        for name, layer in _tuner_layers(model):
            active, disabled = self._before.get(name, ((), False))
            if name in self._layers:
                _activate(layer, (*(() if disabled else active), adapter))
            else:
                _activate(layer, active, disabled)
        with torch.no_grad():
            self.load(weights)

    def load(self, weights: LoraWeights) -> None:
        """Overwrites A and B in place; same layers and rank as attached."""
        for name, (down, up) in weights.matrices.items():
            self._matrix(name, "lora_A").copy_(down)
            self._matrix(name, "lora_B").copy_(up)

    def _matrix(self, name: str, part: str) -> nn.Parameter:
        return getattr(self._layers[name], part)[self.adapter].weight

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable float32 tensors, "<module>.lora_A" [rank, in] and "<module>.lora_B" [out, rank]."""
        return {f"{name}.{part}": self._matrix(name, part) for name in self._layers for part in ("lora_A", "lora_B")}

    def weights(self) -> LoraWeights:
        """The present weights, not copied."""
        matrices = {name: (self._matrix(name, "lora_A"), self._matrix(name, "lora_B")) for name in self._layers}
        return LoraWeights(matrices, self.rank, self.alpha)

    def count(self, times: float) -> None:
        """From now on the LoRA counts so many times, also in backward passes that run layers again."""
        if times != self._strength:
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
        for layer in self._layers.values():
            _set_strength(layer, strength, self.adapter)

    def remove(self) -> None:
        """Takes the LoRA out of the model; layers that PEFT wrapped for us become plain layers again."""
        for name, layer in self._layers.items():
            if name not in self._before:
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, layer.get_base_layer())
                continue
            _activate(layer, [a for a in layer.active_adapters if a != self.adapter])
            _keep_flags(layer, lambda layer=layer: layer.delete_adapter(self.adapter))
        self.model.delete_adapters(self.adapter)
        if not self._before:
            self.model._hf_peft_config_loaded = False
        for name, layer in _tuner_layers(self.model):
            _activate(layer, *self._before[name])


def _inject(
    model: Any, weights: LoraWeights, known: Collection[str], adapter: str, device: torch.device | None
) -> None:
    """Adds float32 LoRA layers; the global random state and the base model's requires_grad flags stay as they were.

    Layers that PEFT had wrapped before, `known` by their names, cast their inputs for the user's adapters as they did,
    unless it was for a LoRA of ours.
    """
    config = LoraConfig(
        r=weights.rank,
        lora_alpha=weights.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        init_lora_weights="gaussian",
        target_modules=list(weights.matrices),
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # ours, or the user's: it is meant so
        _keep_flags(model, lambda: model.add_adapter(config, adapter_name=adapter))
    for name in weights.matrices:
        layer: Any = model.get_submodule(name)
        for part in (layer.lora_A, layer.lora_B):
            part[adapter].to(device, torch.float32).requires_grad_(True)
        narrow = name not in known or not layer.cast_input_dtype_enabled
        if isinstance(layer.lora_A[adapter], nn.Linear) and narrow:
            _keep_narrow_inputs(layer, adapter)


def _keep_narrow_inputs(layer: Any, adapter: str) -> None:
    """PEFT would keep a float32 copy of each layer's input for the backward pass."""
    plain = layer.lora_A[adapter]
    with torch.device("meta"):
        layer.lora_A[adapter] = WideningLinear(plain.in_features, plain.out_features, bias=False)
    layer.lora_A[adapter].weight = plain.weight
    layer.cast_input_dtype_enabled = False


def _tuner_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _adapter_states(model: nn.Module) -> dict[str, tuple[tuple[str, ...], bool]]:
    """Per layer that PEFT has wrapped: which adapters are active, and whether all are disabled."""
    states = {}
    for name, layer in _tuner_layers(model):
        if layer.merged:
            raise GeneratorError(
                f"Expected no fused LoRA, but {layer.merged_adapters} is fused into {name}. Call the pipeline's "
                "unfuse_lora() first; the LoRA stays loaded and active."
            )
        states[name] = (tuple(layer.active_adapters), layer.disable_adapters)
    return states


def _keep_flags(module: Any, action: Any) -> None:
    """Runs `action` and undoes what PEFT does to the requires_grad flags of the parameters that were there before."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    action()
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _activate(layer: Any, adapters: Sequence[str], disabled: bool = False) -> None:
    def action() -> None:
        layer.set_adapter(list(adapters))
        layer.enable_adapters(not disabled)

    _keep_flags(layer, action)


def _set_strength(layer: Any, scale: float, adapter: str) -> None:
    others = [other for other in layer.active_adapters if other != adapter]
    _activate(layer, others if scale == 0 else [*others, adapter])
    layer.set_scale(adapter, scale)
