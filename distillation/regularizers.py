"""Penalties that keep the generator near its base model and its pictures displayable."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def velocity_distance(prediction: Tensor, base_prediction: Tensor) -> Tensor:
    """Mean squared difference of the predictions with and without LoRA at the same point, a scalar."""
    return F.mse_loss(prediction.float(), base_prediction.float())


def range_penalty(image: Tensor) -> Tensor:
    """5 · mean(relu(|y − ½| − ½)) of unclamped pictures y: 0 while every value lies in [0, 1]."""
    return 5 * F.relu((image - 0.5).abs() - 0.5).mean()
