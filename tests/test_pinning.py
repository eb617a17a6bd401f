"""Main memory that is pinned where it lies, by a pretended CUDA."""

from __future__ import annotations

import gc
import logging

import psutil
import pytest
import torch

from dual_process.core import pinning
from dual_process.core.pinning import PinnedMemory

GPU = torch.device("cuda", 0)


class Runtime:
    """Stands in for torch.cuda.cudart(): registers memory by address, up to a limit."""

    def __init__(self, limit=10**9):
        self.registered, self.limit = {}, limit

    def cudaHostRegister(self, address, size, flags):
        if sum(self.registered.values()) + size > self.limit:
            return 2
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address):
        del self.registered[address]
        return 0


@pytest.fixture
def runtime(monkeypatch):
    made = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(pinning, "_forget_error", lambda device: None)
    monkeypatch.setattr(torch.UntypedStorage, "is_pinned", lambda self: False)
    return made


@pytest.fixture
def tensors():
    whole = torch.zeros(100)
    return [torch.zeros(50), whole[:50], whole[50:]]  # the last two in one memory


def test_it_is_pinned_once_where_it_lies_and_let_go_of_in_the_end(runtime, tensors):
    memory = PinnedMemory(tensors)
    memory.pin(torch.device("cpu"))
    assert not runtime.registered
    other = PinnedMemory(tensors[:1])
    for pins in (memory, memory, other):
        pins.pin(GPU)
    assert sorted(runtime.registered.values()) == [200, 400]
    assert {t.data_ptr() for t in tensors[:2]} == {*runtime.registered}
    del pins, memory
    gc.collect()
    assert not runtime.registered


@pytest.mark.parametrize("reason", ["CUDA's error 2", "main memory has room for 0.0 GB"])
def test_what_cannot_be_pinned_stays_as_it_is(runtime, tensors, reason, monkeypatch, caplog):
    if reason.startswith("CUDA"):
        runtime.limit = 300
    else:
        small = psutil.virtual_memory()._replace(total=100)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
    with caplog.at_level(logging.WARNING):
        PinnedMemory(tensors).pin(GPU)
    assert reason in caplog.text
    assert "stay unpinned" in caplog.text
    assert not runtime.registered
    assert not pinning._pinned
