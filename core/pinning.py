"""Main memory that a device reads by itself, while it does other work."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

SHARE = 0.75  # of main memory, that may be pinned: the system cannot swap it out
GiB = 2**30

log = logging.getLogger(__name__)
_pinned: dict[int, int] = {}  # bytes by address


class PinnedMemory:
    """The memory of tensors, pinned (page-locked) where it lies, without a copy, for as long as this object lives."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [*tensors]
        self._done = False

    def pin(self, device: torch.device) -> None:
        """Pins it, once, for a CUDA device; where that fails, transfers wait for each other, which is said."""
        if self._done or device.type != "cuda":
            return
        self._done = True
        storages = {
            s.data_ptr(): s for s in (t.data.untyped_storage() for t in self._tensors) if s.device.type == "cpu"
        }
        size = sum(storage.nbytes() for storage in storages.values())
        room = SHARE * psutil.virtual_memory().total - sum(_pinned.values())
        reason = f"main memory has room for {max(room, 0) / GiB:.1f} GB" if size > room else _register(storages, device)
        if reason:
            log.warning(
                "The %.1f GB of weights that pass through the device stay unpinned (%s): their way there takes longer, "
                "everything else is the same.",
                size / GiB,
                reason,
            )
        else:
            weakref.finalize(self, _unregister, storages)


def _register(storages: Mapping[int, torch.UntypedStorage], device: torch.device) -> str:
    """Pins all, or none; why not, else nothing."""
    done: dict[int, torch.UntypedStorage] = {}
    for address, storage in storages.items():
        if address in _pinned or storage.nbytes() == 0 or storage.is_pinned():
            continue
        error = int(_runtime().cudaHostRegister(address, storage.nbytes(), 0))
        if error:
            _unregister(done)
            _forget_error(device)
            return f"CUDA's error {error}"
        done[address] = storage
        _pinned[address] = storage.nbytes()
    return ""


def _unregister(storages: Mapping[int, torch.UntypedStorage]) -> None:
    """The storages are passed so that they live until here."""
    for address in storages:
        if _pinned.pop(address, None) is not None:
            _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()


def _forget_error(device: torch.device) -> None:
    """CUDA would report a failed registration once more, at the next thing that runs."""
    try:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except RuntimeError:
        log.debug("CUDA has reported a failed registration of memory.", exc_info=True)
