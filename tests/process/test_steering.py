"""Strokes by hand, inspecting a picture that is there, and what people read of both."""

from __future__ import annotations

import pytest
import torch
from fake_models import SlotPainter, SlotThinker, picture_of, plan, region

from dual_process.core.errors import ProcessError
from dual_process.process import Settings, Stroke, Trajectory, inspect, next_stroke, paint, steer
from dual_process.process.words import plan_in_words, readings_in_words, trajectory_in_words

DRAFT_ONLY = Settings(budget=1)


def test_steering_follows_the_plan_until_all_is_held():
    painter, thinker = SlotPainter(), SlotThinker()
    painting = paint(plan(), painter, thinker, DRAFT_ONLY)
    for count in range(3):
        assert next_stroke(painting.trajectory).id == f"s{count}"
        painting = steer(painting, next_stroke(painting.trajectory), painter, thinker, seed=count)
        assert len(painting.trajectory.held) == count + 1
    assert torch.equal(painting.picture, picture_of({0: 1.0, 1: 1.0, 2: 1.0}))
    assert [step.picture for step in painting.trajectory.steps] == [f"step_0{n}" for n in range(4)]
    assert painting.trajectory.passes == 4
    assert Trajectory.from_json(painting.trajectory.to_json()) == painting.trajectory
    with pytest.raises(ProcessError, match="no stroke left"):
        next_stroke(painting.trajectory)


@pytest.mark.parametrize("only_if_better", [False, True])
def test_a_step_that_does_harm_is_kept_only_where_the_hand_says_so(only_if_better):
    painter, thinker = SlotPainter(drafted=(0, 1), spoils={"hand2": 0}), SlotThinker()
    before = paint(plan(), painter, thinker, DRAFT_ONLY)
    stroke = Stroke("hand2", "change", "add a thing", region=region(2))
    after = steer(before, stroke, painter, thinker, only_if_better=only_if_better)
    step = after.trajectory.steps[-1]
    assert step.reflection.with_status("lost") == ("f0",)
    assert step.reflection.text.startswith("missing: f0")
    assert step.accepted != only_if_better
    assert after.trajectory.best == int(not only_if_better)
    assert torch.equal(after.picture, before.picture) == only_if_better
    told = trajectory_in_words(after.trajectory)
    assert told.startswith("Taken back: add a thing." if only_if_better else "Kept: add a thing.")
    assert "What could mend it" in told or only_if_better


def test_a_picture_is_inspected_as_finished():
    readings = inspect(SlotThinker(), picture_of({0: 1.0}), plan())
    assert [reading.status for reading in readings] == ["held", "violated", "violated"]
    assert readings_in_words(plan(), readings).splitlines()[:2] == [
        "✓ Is there a thing in slot 0?   P(Yes) = 0.950",
        "✗ Is there a thing in slot 1?   P(Yes) = 0.050",
    ]
    with pytest.raises(ProcessError, match="says Yes to every question"):
        inspect(SlotThinker(always=0.9), picture_of({}), plan())


def test_what_people_read_says_how_it_went():
    assert "s1: add a thing in slot 1 in a region of its own" in plan_in_words(plan())
    told = trajectory_in_words(paint(plan(), SlotPainter(), SlotThinker(), Settings(restarts=0)).trajectory)
    assert told.startswith("Everything is as planned.\n3 of 3 facts held.\n4 passes of the painter")
    assert "by rules" not in told
    no = SlotThinker(always=0.1)
    no.control = None  # else it were named before anything is painted
    told = trajectory_in_words(paint(plan(source="rules"), SlotPainter(), no, Settings(budget=3)).trajectory)
    assert "The critic held no fact of any picture" in told
    assert "The plan was made by rules, not by the critic." in told
