"""Look like what a slower process has made of the same prompt and noise."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .penalty import TARGETS, Penalty


class Wanted(Protocol):
    """What samples are to look like; see `targets.Aims`."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def masks(self) -> Tensor: ...


def target_distance(image: Tensor, aims: Wanted) -> Tensor:
    """mean(mask ⊙ (x̂₀ − y)²) of pictures [B, 3, H, W], mean over the batch; a sample without a target counts 0."""
    squares = aims.masks * (image.float()[aims.rows] - aims.images.float()).square()
    return squares.mean(dim=(1, 2, 3)).sum() / len(image)


TARGET_DISTANCE = Penalty(
    "targets",
    "Squared distance of the picture to its target, where the target's mask is white.",
    ("image",),
    target_distance,
    samples=TARGETS,
)
