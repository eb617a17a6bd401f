"""Inspection: what the critic says of each fact, and what that means when one knows what has been done so far."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..core.errors import ProcessError
from .protocols import Thinker
from .states import HELD, LOST, PENDING, UNJUDGED, VIOLATED, Fact, Plan, Reading

_OTHER = {"Yes": "No", "No": "Yes"}
HOLDS, FALLS = 0.7, 0.4  # from which P on a fact is held, and below which a held one is lost


class Ledger:
    """What is known of each fact of a plan so far.

    A fact whose stroke has not run is pending and never an error: an unfinished picture is not wrong. One that is
    also held of a blank canvas says nothing, and decides nothing.

    Attributes:
        blank: readings of the blank canvas.
    """

    def __init__(self, plan: Plan, blank: Sequence[Reading] = ()) -> None:
        self.plan, self.blank = plan, tuple(blank)
        self._unjudged = {reading.fact for reading in blank if reading.status == UNJUDGED}
        self._done: set[str] = set()  # strokes that have run
        self._held: set[str] = set()  # facts that were held by the canvas that is kept

    def run(self, stroke: str) -> None:
        """A stroke has run: its facts are due."""
        self._done.add(stroke)

    def has_run(self, stroke: str) -> bool:
        return stroke in self._done

    def keep(self, readings: Sequence[Reading]) -> None:
        """The canvas of these readings is the one to go on from."""
        self._held = {reading.fact for reading in readings if reading.status == HELD}

    def readings(self, p: Sequence[float]) -> tuple[Reading, ...]:
        """What P of each of the plan's facts, in their order, means now."""
        return tuple(self._read(fact, value) for fact, value in zip(self.plan.facts, p, strict=True))

    def _read(self, fact: Fact, p: float) -> Reading:
        if fact.id in self._unjudged:
            status = UNJUDGED
        elif p >= HOLDS:
            status = HELD
        elif fact.id in self._held:
            status = LOST if p < FALLS else HELD
        elif fact.stroke is not None and fact.stroke not in self._done:
            status = PENDING
        else:
            status = VIOLATED
        return Reading(fact.id, p, status)


def read_blank(thinker: Thinker, like: Tensor, facts: Sequence[Fact]) -> tuple[tuple[Reading, ...], str | None]:
    """What the critic says of a grey canvas of the picture's size: facts that are held there are unjudged.

    Returns:
        The readings, and "Yes" or "No" where the critic gives this answer to everything, though the thinker's `control`
        is a question that asks for a Yes there and a plan's things ask for a No.
    """
    control = thinker.control
    asked = [*facts, *([] if control is None else [control])]
    p = thinker.read(torch.full_like(like, 0.5), asked)
    said = {fact.answer if value >= 0.5 else _OTHER[fact.answer] for fact, value in zip(asked, p, strict=True)}
    readings = tuple(
        Reading(fact.id, value, UNJUDGED if value >= HOLDS else VIOLATED) for fact, value in zip(facts, p, strict=False)
    )
    only = said.pop() if len(said) == 1 else None
    return readings, None if only == "No" and control is None else only


def checked_blank(thinker: Thinker, like: Tensor, facts: Sequence[Fact]) -> tuple[Reading, ...]:
    """The readings of `read_blank`. Raises ProcessError where the critic gives one answer to everything."""
    blank, answer = read_blank(thinker, like, facts)
    if answer is not None:
        raise ProcessError(
            f"The critic says {answer} to every question, even about a blank canvas, so that it cannot inspect. "
            "Choose another critic, or other wordings of the facts."
        )
    return blank


def inspect(thinker: Thinker, picture: Tensor, plan: Plan) -> tuple[Reading, ...]:
    """What a finished picture [1, 3, H, W] holds of a plan. Raises as `checked_blank`."""
    ledger = Ledger(plan, checked_blank(thinker, picture, plan.facts))
    for stroke in plan.strokes:
        ledger.run(stroke.id)
    return ledger.readings(thinker.read(picture, plan.facts))


def gain(readings: Sequence[Reading]) -> tuple[int, float]:
    """By what canvases are compared: how many facts are held, then the mean log P of those that are due.

    What is pending does not count: its P wanders with whatever else is painted.
    """
    due = [reading for reading in readings if reading.status not in (UNJUDGED, PENDING)]
    held = sum(reading.status == HELD for reading in due)
    return held, sum(math.log(max(r.p, 1e-6)) for r in due) / max(1, len(due))


def failing(readings: Sequence[Reading], facts: Sequence[Fact], of: Collection[str] = (VIOLATED, LOST)) -> list[Fact]:
    """Facts that a picture violates or has lost."""
    wrong = {reading.fact for reading in readings if reading.status in of}
    return [fact for fact in facts if fact.id in wrong]
