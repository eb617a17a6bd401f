"""Keep lines where they are, whatever their colours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .penalty import Penalty

SCALES = (1, 2, 4)  # pixels; an edge that has moved by less than a scale still meets itself there


def structure_distance(image: Tensor, base_image: Tensor) -> Tensor:
    """1 − cosine similarity of the pictures' edge maps, mean over scales and pictures, in [0, 1]; a scalar.

    The edge maps [B, 1, H-1, W-1] are gradient magnitudes over all channels, so that colours may change, and contrast
    as a whole, at no cost.
    """
    ours, theirs = edges(image), edges(base_image)
    alike = [F.cosine_similarity(F.avg_pool2d(ours, s).flatten(1), F.avg_pool2d(theirs, s).flatten(1)) for s in SCALES]
    return 1 - torch.stack(alike).mean()


def edges(images: Tensor) -> Tensor:
    """Gradient magnitudes [B, 1, H-1, W-1] of pictures [B, C, H, W]; differentiable in flat areas, too."""
    images = images.float()
    across = images[..., 1:, 1:] - images[..., 1:, :-1]
    down = images[..., 1:, 1:] - images[..., :-1, 1:]
    return (across.square() + down.square()).sum(dim=1, keepdim=True).add(1e-6).sqrt()


STRUCTURE = Penalty(
    "structure",
    "How far edges differ from those of the base model's picture of the same noise, whatever the colours.",
    ("image", "base_image"),
    structure_distance,
)
