"""A device that weights are on only while they visit it: elsewhere they are NaN."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from dual_process.core import residency, streaming


class PretendedDevice:
    """The frozen weights of some modules are NaN but while they visit.

    Attributes:
        events: who came, by the names given; what belongs to several is called by the last of them.
        most_blocks: how many parts whose names begin with "block" have been there at once.
    """

    def __init__(self, named, monkeypatch, trained=()):
        trained = {id(tensor) for tensor in trained}
        self.events, self.most_blocks = [], 0
        self._names, self._home, self._here = {}, {}, []
        for name, modules in named.items():
            for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
                if tensor.is_floating_point() and id(tensor) not in trained:
                    self._names[id(tensor)] = name
                    self._home.setdefault(id(tensor), (tensor, tensor.data))
        for module in (residency, streaming):
            monkeypatch.setattr(module, "visiting_tensors", self._visiting)
        for tensor, _ in self._home.values():
            self._leave(tensor)

    def parts(self):
        """Who came, without the blocks, each once for as long as it was the last."""
        parts = [name for name in self.events if not name.startswith("block")]
        return [name for i, name in enumerate(parts) if i == 0 or parts[i - 1] != name]

    def is_empty(self):
        return bool(self._home) and all(tensor.isnan().all() for tensor, _ in self._home.values())

    def _leave(self, tensor):
        tensor.data = torch.full_like(tensor, torch.nan)

    @contextmanager
    def _visiting(self, tensors, device):
        mine = [t for t in tensors if id(t) in self._home and not t.requires_grad and t.isnan().all()]
        names = dict.fromkeys(self._names[id(t)] for t in mine)
        self.events += names
        self._here.append(names)
        self.most_blocks = max(self.most_blocks, sum(n.startswith("block") for names in self._here for n in names))
        for tensor in mine:
            tensor.data = self._home[id(tensor)][1]
        try:
            yield
        finally:
            for tensor in mine:
                self._leave(tensor)
            self._here.remove(names)
