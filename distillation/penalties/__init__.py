"""Penalties that keep the generator near its base model and its pictures displayable.

A new one is a file here and an entry in `PENALTIES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .anchors import ANCHOR_DISTANCE
from .out_of_range import RANGE
from .penalty import ANCHORS, JUDGED, TARGETS, Penalty
from .structure import STRUCTURE
from .targets import TARGET_DISTANCE
from .velocity import VELOCITY

PENALTIES: Mapping[str, Penalty] = {
    penalty.name: penalty
    for penalty in (
        VELOCITY,
        RANGE,
        ANCHOR_DISTANCE,
        STRUCTURE,
        TARGET_DISTANCE,
    )
}

__all__ = ["ANCHORS", "JUDGED", "PENALTIES", "TARGETS", "Penalty"]
