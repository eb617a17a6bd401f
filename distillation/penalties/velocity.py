"""Stay near the base model."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .penalty import Penalty


def velocity_distance(prediction: Tensor, base_prediction: Tensor) -> Tensor:
    """Mean squared difference of the predictions with and without LoRA at the same point, a scalar."""
    return F.mse_loss(prediction.float(), base_prediction.float())


VELOCITY = Penalty(
    "velocity",
    "Squared distance of the prediction to the base model's on the judged samples.",
    ("prediction", "base_prediction"),
    velocity_distance,
)
