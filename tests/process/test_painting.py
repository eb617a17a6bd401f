"""The process on fakes: what is drawn, inspected, taken back, and where it stops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from fake_models import SlotPainter, SlotThinker, picture_of, plan, region

from dual_process.core.errors import ProcessError, StopRequested
from dual_process.process import Fact, ProcessFailed, Settings, Trajectory, paint
from dual_process.process.files import load_painting, save_painting
from dual_process.process.painting import kept_psnr

ONE_DRAFT = Settings(restarts=0)


def statuses(step):
    return [reading.status for reading in step.reflection.readings]


def test_each_missing_thing_is_drawn_and_the_rest_is_pending_until_then():
    painter, seen = SlotPainter(), []
    made = paint("things", painter, SlotThinker(), ONE_DRAFT, on_step=seen.append)
    way = made.trajectory
    assert [step.stroke for step in way.steps] == ["draft", "s0", "s1", "s2"]
    assert [statuses(step) for step in way.steps] == [
        ["pending"] * 3,
        ["held", "pending", "pending"],
        ["held", "held", "pending"],
        ["held"] * 3,
    ]
    assert way.stop_reason == "done"
    assert way.held == ("f0", "f1", "f2")
    assert way.passes == 4
    assert way.best == 3
    assert torch.equal(made.picture, picture_of({0: 1.0, 1: 1.0, 2: 1.0}))
    assert all(math.isinf(step.keep_psnr) and step.mask for step in way.steps[1:])
    assert [part.trajectory.steps for part in seen] == [way.steps[:n] for n in range(1, 5)]
    assert torch.equal(made.pictures["step_01"], seen[1].picture)


def test_what_the_draft_shows_is_not_drawn_again():
    painter = SlotPainter(drafted=(0, 2))
    paint(plan(), painter, SlotThinker())
    assert [name for name, _ in painter.calls] == ["draft", "s1"]


def test_after_a_background_each_stroke_runs_though_the_critic_believes_it_has():
    class Hasty(SlotThinker):
        """Takes the thing of slot 0 for that of slot 1, too."""

        def read(self, picture, facts):
            p = dict(zip((fact.id for fact in facts), super().read(picture, facts), strict=True))
            return [p["f0"] - 0.001 * p["f1"] if fact.id == "f1" else p[fact.id] for fact in facts]

    painter = SlotPainter()
    made = paint(plan(), painter, Hasty(), replace(ONE_DRAFT, whole_draft=False))
    assert [name for name, _ in painter.calls] == ["draft", "s0", "s1", "s2"]
    assert torch.equal(made.picture, picture_of({0: 1.0, 1: 1.0, 2: 1.0}))


def test_a_stroke_that_fails_is_tried_again_in_other_words():
    painter, thinker = SlotPainter(chance=0.4), SlotThinker()
    way = paint("things", painter, thinker, Settings(budget=30, restarts=0), seed=3).trajectory
    assert way.stop_reason == "done"
    failed = [step for step in way.steps if not step.accepted]
    assert failed
    assert all(step.reflection.verdict in ("refine", "backtrack") for step in failed)
    assert any(text.endswith(", please") for _, text in painter.calls)
    assert thinker.reflected[0][0] == [f"f{way.steps.index(failed[0]) - 1}"]


def test_a_stroke_that_breaks_what_was_held_is_taken_back():
    painter = SlotPainter(spoils={"s1": 0})
    way = paint(plan(2), painter, SlotThinker(plan(2)), Settings(budget=9, restarts=0)).trajectory
    assert not any(step.accepted for step in way.steps if step.stroke == "s1")
    assert way.steps[2].reflection.with_status("lost") == ("f0",)
    assert way.steps[2].reflection.verdict == "backtrack"  # there is nothing to refine in it
    assert way.held == ("f0",)
    spoilt = paint(plan(2), painter, SlotThinker(plan(2)), Settings(budget=9, restarts=0, roll_back=False)).trajectory
    assert any(step.accepted and "lost" in statuses(step) for step in spoilt.steps)


def test_without_inspection_each_stroke_runs_once():
    painter = SlotPainter(chance=0.0)
    way = paint(plan(), painter, SlotThinker(), Settings(inspect=False)).trajectory
    assert [name for name, _ in painter.calls] == ["draft", "s0", "s1", "s2"]
    assert all(step.accepted for step in way.steps)


@pytest.mark.parametrize(("settings", "reason"), [(Settings(budget=5), "budget"), (Settings(budget=99), "no gain")])
def test_it_stops_at_the_budget_or_where_nothing_helps(settings, reason):
    painter = SlotPainter(chance=0.0, drafted=(0,))
    way = paint(plan(), painter, SlotThinker(), settings).trajectory
    assert way.stop_reason == reason
    assert way.passes == len(painter.calls) <= settings.budget
    assert way.best == 0


def test_a_draft_that_holds_too_little_is_made_again():
    held = plan(2, strokes=(), facts=(Fact("f0", "?"), Fact("f1", "?")))
    painter = SlotPainter()
    way = paint(held, painter, SlotThinker(held)).trajectory
    assert [step.reflection.verdict for step in way.steps] == ["restart", "accept"]
    assert len({step.seed for step in way.steps}) == 2
    assert [step.stroke for step in paint(held, SlotPainter(drafted=(0, 1)), SlotThinker(held)).trajectory.steps] == [
        "draft"
    ]


def test_the_same_seed_gives_the_same_trajectory_and_it_survives_json():
    ways = [paint(plan(), SlotPainter(0.5), SlotThinker(), Settings(budget=20), seed=5).trajectory for _ in range(2)]
    assert ways[0] == ways[1]
    assert Trajectory.from_json(ways[0].to_json()) == ways[0]
    other = paint(plan(), SlotPainter(0.5), SlotThinker(), Settings(budget=20), seed=6).trajectory
    assert other.steps != ways[0].steps


@pytest.mark.parametrize(("always", "answer"), [(0.9, "Yes"), (0.1, "No")])
def test_a_critic_that_always_says_the_same_is_named(always, answer):
    with pytest.raises(ProcessError, match=f"says {answer} to every question, even about a blank canvas"):
        paint(plan(), SlotPainter(), SlotThinker(always=always))


def test_a_plan_of_what_must_not_be_there_is_no_reason_to_doubt_the_critic():
    nothing = plan(2, facts=tuple(replace(fact, answer="No") for fact in plan(2).facts))

    class Denies(SlotThinker):
        def read(self, picture, facts):
            return [1 - p if f.answer == "No" else p for f, p in zip(facts, super().read(picture, facts), strict=True)]

    assert paint(nothing, SlotPainter(), Denies(nothing)).trajectory.stop_reason == "done"


@pytest.mark.parametrize("killed_after", [1, 3, 6])
def test_a_killed_run_goes_on_as_if_nothing_had_been(killed_after, tmp_path):
    def run(painter, **changes):
        settings = Settings(budget=12, restarts=0)
        return paint(plan(), painter, SlotThinker(), settings, seed=3, **changes)

    whole = run(SlotPainter(0.4))
    assert len(whole.trajectory.steps) > 6

    def save_until_killed(so_far):
        if len(so_far.trajectory.steps) <= killed_after:
            save_painting(so_far, tmp_path, last_step_only=True)

    run(SlotPainter(0.4), on_step=save_until_killed)
    left = load_painting(tmp_path)
    assert left.trajectory.stop_reason == "running"
    painter = SlotPainter(0.4)
    resumed = run(painter, resume_from=left)
    assert resumed.trajectory == whole.trajectory
    assert torch.equal(resumed.picture, whole.picture)
    assert len(painter.calls) == len(whole.trajectory.steps) - killed_after


def test_only_the_same_run_goes_on():
    made = paint(plan(), SlotPainter(), SlotThinker(), seed=1)
    with pytest.raises(ProcessError, match="another seed: 1, now 2"):
        paint(plan(), SlotPainter(), SlotThinker(), seed=2, resume_from=made)
    with pytest.raises(ProcessError, match="another plan"):
        paint(plan(2), SlotPainter(), SlotThinker(), seed=1, resume_from=made)
    steps = (*made.trajectory.steps[:1], replace(made.trajectory.steps[1], ins="paint it red"))
    edited = replace(made, trajectory=replace(made.trajectory, steps=steps))
    with pytest.raises(ProcessError, match="Step 1 of the trajectory was 'paint it red'"):
        paint(plan(), SlotPainter(), SlotThinker(), seed=1, resume_from=edited)


def test_a_fact_that_a_blank_canvas_holds_decides_nothing():
    class Fond(SlotThinker):
        def read(self, picture, facts):
            return [0.9 if fact.id == "f1" else p for fact, p in zip(facts, super().read(picture, facts), strict=True)]

    painter = SlotPainter()
    way = paint(plan(), painter, Fond(), ONE_DRAFT).trajectory
    assert [name for name, _ in painter.calls] == ["draft", "s0", "s2"]
    assert statuses(way.steps[-1]) == ["held", "unjudged", "held"]
    assert way.stop_reason == "done"


def test_a_failure_or_a_stop_on_the_way_keeps_what_is_there():
    with pytest.raises(ProcessFailed, match=r"failed after 2 steps \(MemoryError: full\)") as failed:
        paint(plan(), SlotPainter(fail_at=3), SlotThinker(), ONE_DRAFT)
    assert failed.value.painting.trajectory.held == ("f0",)
    assert failed.value.painting.trajectory.stop_reason == "failed"
    with pytest.raises(MemoryError):
        paint(plan(), SlotPainter(fail_at=1), SlotThinker())
    painter = SlotPainter()
    stopped = paint(plan(), painter, SlotThinker(), ONE_DRAFT, should_stop=lambda: len(painter.calls) == 2)
    assert stopped.trajectory.stop_reason == "interrupted"
    assert len(stopped.trajectory.steps) == 2
    with pytest.raises(ProcessError, match="before there was a picture"):
        paint(plan(), SlotPainter(), SlotThinker(), should_stop=lambda: True)


def test_a_model_that_stops_from_within_leaves_what_is_there():
    class Stopping(SlotPainter):
        def stroke(self, canvas, stroke, seed):
            if stroke.id == "s1":
                raise StopRequested
            return super().stroke(canvas, stroke, seed)

    way = paint(plan(), Stopping(), SlotThinker(), ONE_DRAFT).trajectory
    assert (way.stop_reason, way.held) == ("interrupted", ("f0",))


def test_what_lies_outside_a_region_is_measured():
    before = picture_of({0: 1.0})
    after = picture_of({0: 1.0, 1: 1.0})
    assert math.isinf(kept_psnr(after, before, region(1)))
    assert kept_psnr(after, before, region(2)) == pytest.approx(-10 * math.log10((191 / 255) ** 2 / 3))
    assert math.isinf(kept_psnr(after, before, replace(region(1), left=0.0, right=1.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget of at least 1, got 0"),
        ({"refinements": -1}, "refinements"),
        ({"restart_below": 2}, "0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ProcessError, match=message):
        Settings(**changes)
