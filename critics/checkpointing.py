"""Gradient checkpointing of a model in eval mode, which transformers offers in training mode only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def checkpointed_layers(model: Any) -> Iterator[None]:
    """While entered, forward passes keep only each layer's input; the backward pass computes the layer again.

    Dropout stays off: only the layers themselves are told that they train, not what is inside them, and those that
    drop out themselves are left alone.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and not isinstance(getattr(module, "dropout", None), float)
    ]
    try:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
