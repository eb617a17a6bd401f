"""Drawn layers, kept while they fit."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from torch import Tensor

from .layer import Layer


class DrawnLayers:
    """The pictures of layers that were drawn last, within a number of bytes; for many threads.

    Every layer is drawn once for each size; one whose picture alone is larger than the bound is drawn each time.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._pictures: OrderedDict[tuple[Layer, int, int], Tensor] = OrderedDict()  # the one used last at the end
        self._lock = Lock()

    def get(self, layer: Layer, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1], shared: not to be changed."""
        key = (layer, height, width)
        with self._lock:  # while drawing, too, so that no two threads draw the same
            picture = self._pictures.pop(key, None)
            if picture is None:
                picture = layer.draw(height, width)
                if picture.nbytes > self._most_bytes:
                    return picture
                self._bytes += picture.nbytes
            self._pictures[key] = picture
            while self._bytes > self._most_bytes:
                _, oldest = self._pictures.popitem(last=False)
                self._bytes -= oldest.nbytes
        return picture
