"""ComfyUI's own patcher for dynamic VRAM, on the CPU: only the library that reserves memory on a GPU is pretended."""

from __future__ import annotations

from contextlib import contextmanager

import torch


class _HostBuffer:
    """Of pinned memory, of which a CPU has none."""

    def __init__(self, *_, **__):
        self.size = 0

    def truncate(self, size, **_):
        self.size = size


class _Reservation:
    """Of addresses on a GPU."""

    def __init__(self):
        self.faults = 0

    def alloc(self, size):
        return (self, 0, size)

    def prioritize(self):
        pass

    def loaded_size(self):
        return 0

    def free_memory(self, _):
        return 0


@contextmanager
def dynamic_vram(monkeypatch):
    """While entered, ComfyUI's loaders make models whose weights lie as the file has them, and are streamed."""
    import comfy.memory_management
    import comfy.model_patcher
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar

    dynamic = comfy.model_patcher.ModelPatcherDynamic

    def make(cls, model=None, load_device=None, *_, **__):
        return object.__new__(cls)  # its own takes a patcher of the other kind for a CPU

    reservations = {}

    def reservation(self, create=False):
        if create:
            reservations.setdefault(id(self.model), _Reservation())
        return reservations.get(id(self.model))

    with monkeypatch.context() as patch:
        patch.setattr(comfy_aimdo.host_buffer, "HostBuffer", _HostBuffer)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda *_: None)
        patch.setattr(dynamic, "__new__", make)
        patch.setattr(dynamic, "_vbar_get", reservation)
        patch.setattr(dynamic, "partially_unload", _partially_unload)
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", dynamic)
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        yield


def _partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
    return self.restore_loaded_backups()  # what its own does besides, which is for a GPU only


def places(model):
    """Modules that ComfyUI would stream."""
    return [module for module in model.modules() if hasattr(module, "_v")]


def memory(model):
    """Where the weights lie."""
    return [(name, p.data_ptr(), p.dtype, p.requires_grad) for name, p in model.named_parameters()]


def load_as_comfyui_does(*patchers):
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu(list(patchers))
