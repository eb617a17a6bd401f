"""Keep pictures displayable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .penalty import Penalty


def out_of_range(image: Tensor) -> Tensor:
    """5 · mean(relu(|y − ½| − ½)) of unclamped pictures y: 0 while every value lies in [0, 1]."""
    return 5 * F.relu((image - 0.5).abs() - 0.5).mean()


RANGE = Penalty("range", "How far pixels lie outside [0, 1].", ("image",), out_of_range)
