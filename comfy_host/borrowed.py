# pyright: reportMissingImports=false
"""A model of ComfyUI whose weights this pack moves, instead of ComfyUI, for as long as it works with them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.float
import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from .weights import ABSENT, Weights, placed, plain

PATCHERS = ("ModelPatcher", "ModelPatcherDynamic")
STREAMED = ("_v", "_v_block")  # where ComfyUI keeps its own place for a part's weights on the device (dynamic VRAM)


def why_not(patcher: Any) -> str:
    """What of a model's weights does not let this pack move them, as the end of a sentence; empty where it can."""
    kind = type(patcher)
    if kind.__module__ != "comfy.model_patcher" or kind.__name__ not in PATCHERS:
        return f"are loaded by a {kind.__name__} in a way of its own"
    if patcher.forced_hooks is not None:
        return "are changed by hooks"
    if patcher.get_all_callbacks(CallbacksMP.ON_LOAD):
        return "are changed by another node whenever they are loaded"
    kinds = {type(t.data) for t in (*patcher.model.parameters(), *patcher.model.buffers())}
    unknown = kinds - {Tensor, nn.Parameter, QuantizedTensor}
    return f"are in a format that cannot be streamed, {min(k.__name__ for k in unknown)}" if unknown else ""


def never_streamed(patcher: Any) -> Any:
    """The patcher itself; for one whose weights ComfyUI streams (dynamic VRAM), another one over the same weights."""
    if not patcher.is_dynamic():
        return patcher
    return patcher.clone(disable_dynamic=True, model_override=patcher.get_clone_model_override())


def take_away(patchers: Iterable[Any], device: torch.device) -> None:
    """ComfyUI has nothing of these models on the device any more; their weights are the originals."""
    gone = {id(patcher.model) for patcher in patchers}
    _unload([entry for entry in _loaded(device) if id(entry.model.model) in gone], device)


def take_away_all_but(patchers: Iterable[Any], device: torch.device) -> None:
    """ComfyUI has no other models on the device than these."""
    kept = {id(patcher.model) for patcher in patchers}
    _unload([entry for entry in _loaded(device) if id(entry.model.model) not in kept], device)


def _loaded(device: torch.device) -> list[Any]:
    entries = comfy.model_management.current_loaded_models
    return [entry for entry in entries if entry.model is not None and entry.device == device]


def _unload(entries: list[Any], device: torch.device) -> None:
    kept = [entry for entry in _loaded(device) if entry not in entries]
    if entries:  # bytes: all that there is
        gc.collect()  # ComfyUI counts through a list from which a model that is collected meanwhile drops out
        comfy.model_management.free_memory(1e30, device, keep_loaded=kept)


class Borrowed:
    """A model's weights in main memory, as plain frozen tensors over the same memory, which the caller moves.

    Args:
        patcher: a ModelPatcher for which `why_not` has no reason. It is never loaded: not even a second copy is made of
            one that ComfyUI streams.

    Attributes:
        patcher: for the same weights, and never streamed by ComfyUI.
    """

    def __init__(self, patcher: Any) -> None:
        self.patcher = never_streamed(patcher)
        self._cast = patcher.is_dynamic()  # its weights lie there as the file has them
        self._weights: Weights = []
        self._memory: list[Any] = []  # where the weights lay when ours were made
        self._depth = 0

    @property
    def model(self) -> nn.Module:
        return self.patcher.model

    @contextmanager
    def in_force(self) -> Iterator[bool]:
        """While entered, the model's modules hold our tensors, and what the user has applied to the MODEL is in force.

        Gives whether the tensors are other ones than the last time. Afterwards all is as before, and ComfyUI has
        nothing of the model on the device. Enter and use it outside inference mode.
        """
        if self._depth:
            yield False
            return
        device = self.patcher.load_device
        with torch.inference_mode():
            take_away([self.patcher], device)
        forwards = {module: vars(module).get("forward") for module in self.model.modules()}
        try:
            self._apply_objects(device)
            new = self._take_weights(device)
            with placed([*self._weights, *self._changes(device)]):
                self._depth = 1
                yield new
        finally:
            self._depth = 0
            with torch.inference_mode():
                self.patcher.model_patches_to(self.patcher.offload_device)
                self.patcher.unpatch_model(None, unpatch_weights=False)
            for module, forward in forwards.items():
                if forward is None:
                    vars(module).pop("forward", None)

    def _apply_objects(self, device: torch.device) -> None:
        """What is applied to a MODEL besides its weights: other objects, LoRAs beside a layer (bypass), patches."""
        patcher = self.patcher
        with torch.inference_mode():
            patcher.eject_model()  # a clone of one that was loaded takes itself for loaded, too
            patcher.patch_model(load_weights=False)
            patcher.model_patches_to(device)
            if patcher.model_dtype() is not None:
                patcher.model_patches_to(patcher.model_dtype())

    def _take_weights(self, device: torch.device) -> bool:
        """Makes our tensors, unless those of the last time are over the same memory; whether it has."""
        found = list(_tables(self.model))
        memory = [(id(table), name, value.data_ptr(), value.device) for _, _, table, name, value in found]
        if self._weights and memory == self._memory:
            return False
        ours: dict[int, Tensor] = {}
        for path, module, table, name, value in found:
            if id(value) not in ours:
                tensor = self._ours(module, f"{path}.{name}", name, value, device)
                ours[id(value)] = _parameter(tensor) if table is module._parameters else tensor
        self._weights = [(table, name, ours[id(value)]) for _, _, table, name, value in found]
        self._memory = memory
        return True

    def _ours(self, module: nn.Module, key: str, name: str, value: Tensor, device: torch.device) -> Tensor:
        if isinstance(value, QuantizedTensor):
            return _said_to_be_on(device, plain(value))
        # A file may lack a weight, for which ComfyUI then takes zeros.
        tensor = torch.zeros(value.shape, dtype=value.dtype) if value.is_meta else plain(value)
        tensor = tensor.to(self._dtype(module, name, tensor))
        if key in self.patcher.patches and not (hasattr(module, "comfy_cast_weights") and name in ("weight", "bias")):
            return _Applied(self.patcher, module, key, tensor.dtype)(tensor)  # the layer does not compute it itself
        return tensor

    def _dtype(self, module: nn.Module, name: str, weight: Tensor) -> torch.dtype:
        wanted = getattr(module, f"{name}_comfy_model_dtype", None) if self._cast else None
        return weight.dtype if wanted is None else wanted

    def _changes(self, device: torch.device) -> Weights:
        """Attributes of the modules: what is applied to a layer's weights is computed when the layer runs."""
        patcher = self.patcher
        changes: Weights = [(vars(self.model), "device", device)] if "device" in vars(self.model) else []
        for path, module in self.model.named_modules():
            table = vars(module)
            changes += [(table, name, ABSENT) for name in STREAMED if name in table]
            if not hasattr(module, "comfy_cast_weights"):
                continue
            if patcher.force_cast_weights:
                changes += [(table, "comfy_cast_weights", True), (table, "comfy_force_cast_weights", True)]
            for name in ("weight", "bias"):
                key, weight = f"{path}.{name}", getattr(module, name, None)
                functions = [*patcher.weight_wrapper_patches.get(key, ())]
                if weight is not None and key in patcher.patches:
                    functions.insert(0, _Applied(patcher, module, key, self._dtype(module, name, weight)))
                if functions or getattr(module, f"{name}_function", None):
                    changes.append((table, f"{name}_function", functions))
        return changes


class _Applied:
    """What the user has applied to a weight, computed and rounded as ComfyUI does when it loads the model."""

    def __init__(self, patcher: Any, module: nn.Module, key: str, dtype: torch.dtype) -> None:
        self._patches, self._key, self._dtype = patcher.patches[key], key, dtype
        self._round = getattr(module, f"set_{key.rpartition('.')[2]}", None)  # of layers that can be quantised
        self._seed = comfy.utils.string_to_seed(key)

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> Tensor:
        computing = comfy.model_management.lora_compute_dtype(weight.device)
        changed = comfy.lora.calculate_weight(self._patches, weight.to(computing, copy=True), self._key)
        if self._round is None:
            rounded = comfy.float.stochastic_rounding(changed, self._dtype, seed=self._seed)
        else:
            rounded = self._round(changed, inplace_update=False, seed=self._seed, return_weight=True)
        rounded = rounded.to(weight.dtype)
        return rounded.dequantize() if isinstance(rounded, QuantizedTensor) else rounded


def _tables(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any], str, Tensor]]:
    """Of all parameters and buffers the module's path and the module, the table, the name and the tensor."""
    for path, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            yield from ((path, module, table, name, value) for name, value in table.items() if value is not None)


def _parameter(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, QuantizedTensor):
        return nn.Parameter(tensor, requires_grad=False)
    tensor._is_param = True  # as nn.Parameter does, which would make a copy of it
    return tensor


def _said_to_be_on(device: torch.device, tensor: Any) -> Any:
    """A quantised tensor that calls itself a tensor of this device, wherever its parts lie."""
    kind: Any = type(tensor)
    made = Tensor._make_wrapper_subclass(kind, tensor.shape, device=device, dtype=tensor.dtype, requires_grad=False)
    kind.__init__(made, tensor._qdata, tensor._layout_cls, tensor._params)
    return made
