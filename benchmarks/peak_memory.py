"""Resident memory of this process."""

from __future__ import annotations

import threading
import time
from typing import Any

import psutil

MB = 2**20


class Peak:
    """The highest resident memory of this process while entered, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, resident())
            time.sleep(0.005)

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def resident() -> int:
    """Bytes."""
    return psutil.Process().memory_info().rss
