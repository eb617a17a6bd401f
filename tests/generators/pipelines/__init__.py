"""Tiny random pipelines of the real classes, one file for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """How an architecture's tiny pipeline is made and called."""

    name: str  # as `generator.info.architecture` says it
    build: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)  # of the pipeline's call
    layout: Callable[[Any], Any] = lambda noise: noise  # noise [B, C, h, w] as the pipeline takes `latents`
    learning_rate: float = 0.3
    targets: str = "attention + feed-forward"
    size: int = 64  # pixels, the smaller side
