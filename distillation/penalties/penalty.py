"""What a penalty is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...core.protocols import Need

JUDGED, ANCHORS, TARGETS = "judged", "anchors", "targets"


@dataclass(frozen=True)
class Penalty:
    """A small term beside the VQA loss, weighed by a recipe's `penalties` table."""

    name: str  # in recipes, reports and metadata
    help: str
    needs: tuple[Need, ...]  # of an `Estimate`, in the order in which `call` takes them
    call: Callable[..., Tensor]  # a scalar with gradient
    # Whose estimate: the judged samples', that of anchors drawn beside them, or the judged samples' with their `Aims`.
    samples: str = JUDGED
