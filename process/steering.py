"""Steering by hand: one stroke more on a picture that was made step by step, inspected like the others."""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import ProcessError
from .inspecting import Ledger, failing
from .painting import DRAFT, Painting, as_shown, improves, kept_psnr
from .protocols import Painter, Thinker
from .states import ACCEPT, BACKTRACK, HELD, UNJUDGED, Reflection, Step, Stroke, Trajectory

BY_HAND = "by hand"  # the id of strokes that no plan has


def next_stroke(trajectory: Trajectory) -> Stroke:
    """The plan's first stroke with a fact that the best picture does not hold.

    Raises:
        ProcessError: everything is held that a stroke would bring about.
    """
    plan = trajectory.plan
    readings = trajectory.steps[trajectory.best].reflection.readings
    held = {reading.fact for reading in readings if reading.status in (HELD, UNJUDGED)}
    for stroke in plan.strokes:
        if any(fact.id not in held for fact in plan.facts_of(stroke.id)):
            return stroke
    raise ProcessError("The plan has no stroke left whose facts are not held: say what shall be changed.")


def steer(
    painting: Painting, stroke: Stroke, painter: Painter, thinker: Thinker, seed: int = 0, only_if_better: bool = False
) -> Painting:
    """The painting with one step more, its canvas the new one where that was kept.

    Args:
        painting: its canvas is painted on.
        stroke: of the plan, or any other.
        only_if_better: whether the new picture is kept only if `paint` would keep it; else it always is.
    """
    trajectory = painting.trajectory
    before = trajectory.steps[trajectory.best].reflection.readings
    ledger = Ledger(trajectory.plan, trajectory.blank)
    for step in trajectory.steps:
        ledger.run(step.stroke)
    ledger.keep(before)
    made = as_shown(painter.stroke(painting.canvas, stroke, seed))
    ledger.run(stroke.id)
    readings = ledger.readings(thinker.read(made.picture, trajectory.plan.facts))
    kept = None if stroke.region is None else kept_psnr(made.picture, painting.picture, stroke.region)
    accepted = not only_if_better or improves(readings, before, kept)
    wrong = failing(readings, trajectory.plan.facts)
    text, instruction = ("", "")
    if wrong:
        text, instruction = thinker.reflect(made.picture, wrong, [stroke.instruction], trajectory.plan.prompt)
    number = len(trajectory.steps)
    step = Step(
        stroke=stroke.id,
        ins=stroke.instruction,
        des="; ".join(
            [trajectory.steps[0].des, *(s.ins for s in trajectory.steps if s.accepted and s.stroke != DRAFT)]
        ),
        picture=f"step_{number:02}",
        reflection=Reflection(readings, text, ACCEPT if accepted else BACKTRACK, instruction),
        seed=seed,
        accepted=accepted,
        mask=stroke.region is not None and painter.keeps_outside,
        keep_psnr=kept,
    )
    grown = replace(
        trajectory,
        steps=(*trajectory.steps, step),
        best=number if accepted else trajectory.best,
        passes=trajectory.passes + 1,
        stop_reason=BY_HAND,
    )
    return Painting(grown, {**painting.canvases, step.picture: made})
