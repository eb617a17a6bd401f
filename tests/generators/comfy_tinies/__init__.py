"""Tiny random models as ComfyUI loads them, one file for each architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class ComfyTiny:
    """How an architecture's tiny MODEL is made; everything that imports ComfyUI happens inside `build`.

    `build` returns MODEL, whose weights are kept in the dtype given, and VAE, loaded in inference mode from weights in
    memory. Where diffusers has the model, the
    MODEL's weights are those of the transformer or UNet of `pipelines/`' pipeline of the same name, if ComfyUI can
    be brought to take so small a model.
    """

    name: str  # as `generator.info.architecture` says it
    build: Callable[[torch.dtype], tuple[Any, Any]]
    conditioning: Callable[[int], Any]  # CONDITIONING of a prompt's number
    latent: tuple[int, ...]  # shape of a LATENT's samples
    options: dict[str, Any] = field(default_factory=dict)  # of ComfyGenerator: cfg, steps, scheduler …
