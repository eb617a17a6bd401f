"""Stay as it is where it is right already."""

from __future__ import annotations

from .penalty import ANCHORS, Penalty
from .velocity import velocity_distance

ANCHOR_DISTANCE = Penalty(
    "anchors",
    "Squared distance of the prediction to the base model's on anchors: base pictures that are right already.",
    ("prediction", "base_prediction"),
    velocity_distance,
    samples=ANCHORS,
)
