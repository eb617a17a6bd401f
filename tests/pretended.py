"""A device that weights are on only while they visit it: elsewhere they are NaN."""

from __future__ import annotations

import torch

from dual_process.core.residency import Visit, weights_of


class PretendedDevice:
    """The frozen weights of some modules are NaN but while they visit.

    Attributes:
        events: ("come", name) and ("leave", name), by the names given; what belongs to several is called by the last
            of them.
        most_blocks: how many parts whose names begin with "block" have been there, or on their way, at once.
    """

    def __init__(self, named, monkeypatch, trained=()):
        trained = {id(tensor) for tensor in trained}
        self.events, self.most_blocks = [], 0
        self._names, self._home, self._here = {}, {}, []
        for name, modules in named.items():
            for tensor in (t for module in modules for t in weights_of(module)):
                if tensor.is_floating_point() and id(tensor) not in trained:
                    self._names[id(tensor)] = name
                    self._home.setdefault(id(tensor), (tensor, tensor.data))
        monkeypatch.setattr(Visit, "kind", lambda tensors, device: _Visit(self, tensors))
        for tensor, _ in self._home.values():
            self.take_away(tensor)

    def came(self):
        return [name for event, name in self.events if event == "come"]

    def parts(self):
        """Who came, without the blocks, each once for as long as it was the last."""
        parts = [name for name in self.came() if not name.startswith("block")]
        return [name for i, name in enumerate(parts) if i == 0 or parts[i - 1] != name]

    def is_empty(self):
        return not self._here and bool(self._home) and all(tensor.isnan().all() for tensor, _ in self._home.values())

    def away(self, tensors):
        return [t for t in tensors if id(t) in self._home and not t.requires_grad and t.isnan().all()]

    def take_away(self, tensor):
        tensor.data = torch.full_like(tensor, torch.nan)

    def bring(self, tensor):
        tensor.data = self._home[id(tensor)][1]

    def note(self, event, tensors):
        for name in dict.fromkeys(self._names[id(t)] for t in tensors):
            self.events.append((event, name))
            self._here.append(name) if event == "come" else self._here.remove(name)
        self.most_blocks = max(self.most_blocks, sum(name.startswith("block") for name in self._here))


class _Visit:
    def __init__(self, device, tensors):
        self._device, self._tensors, self._coming = device, device.away(tensors), False

    def fetch(self):
        if not self._coming:
            self._coming = True
            self._device.note("come", self._tensors)

    def settle(self):
        self.fetch()
        for tensor in self._tensors:
            self._device.bring(tensor)

    def leave(self):
        if self._coming:
            self._coming = False
            self._device.note("leave", self._tensors)
            for tensor in self._tensors:
                self._device.take_away(tensor)
