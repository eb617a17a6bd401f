"""Resident memory of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

MB = 2**20


class Peak:
    """The highest resident memory of this process while entered, sampled every 5 ms.

    Args:
        part: names what is at work; `of` is the highest memory by these names.
    """

    def __init__(self, part: Callable[[], str] = str) -> None:
        self._part = part

    def __enter__(self) -> Peak:
        self.bytes, self._done = resident(), threading.Event()
        self.of: dict[str, int] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            part, held = self._part(), resident()
            self.bytes, self.of[part] = max(self.bytes, held), max(self.of.get(part, 0), held)
            time.sleep(0.005)

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def resident() -> int:
    """Bytes."""
    return psutil.Process().memory_info().rss
