"""The true pictures of the demo world, as the measures of fidelity want them."""

from __future__ import annotations

import torch

from ..evaluation.fidelity import Truth
from .world import IMAGE_SIZE, Scenes, render, without_objects


def true_pictures(scenes: Scenes) -> Truth:
    """Renders scenes with and without their objects."""
    rows = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    above = rows[None, :, None] < scenes.horizon[:, None, None]
    return Truth(render(scenes), render(without_objects(scenes)), above.expand(-1, -1, IMAGE_SIZE))
