"""Plans and trajectories: what is refused, and that JSON brings back what was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from fake_models import SlotPainter, SlotThinker, plan, region

from dual_process.core.errors import ProcessError
from dual_process.process import Fact, Plan, Region, Stroke, Trajectory, paint, plan_from_dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"facts": ()}, "no facts"),
        ({"facts": (Fact("a", "?"), Fact("a", "?"))}, "facts a are there twice"),
        ({"facts": (Fact("a", "Is it day?"), Fact("b", "is it  day?", "No"))}, "a and b contradict each other"),
        ({"facts": (Fact("a", "?", "Maybe"),)}, "answer of a to be one of Yes, No, got 'Maybe'"),
        ({"facts": (Fact("a", "?", stroke="s9"),)}, "facts a belong to strokes that the plan does not have"),
        ({"facts": tuple(Fact(str(n), "?") for n in range(13))}, "at most 12 facts in a plan, got 13"),
        ({"source": "moon"}, "a plan's source to be one of critic, user, rules, got 'moon'"),
        ({"strokes": (Stroke("s0", "paint", "x"),), "facts": (Fact("a", "?"),)}, "operation of s0 to be one of add"),
        ({"strokes": (Stroke("s0", "add", " "),), "facts": (Fact("a", "?"),)}, "stroke s0 says nothing"),
        (
            {
                "strokes": (
                    Stroke("s0", "add", "x", region=region(0)),
                    Stroke("s1", "add", "y", region=replace(region(0), right=0.5)),
                ),
                "facts": (Fact("a", "?"),),
            },
            "regions of s0 and s1 meet",
        ),
    ],
)
def test_plans_that_cannot_be_followed_are_refused(changes, message):
    with pytest.raises(ProcessError, match=message):
        plan(**changes)


@pytest.mark.parametrize("sides", [(0.5, 0, 0.5, 1), (0, 0, 1.1, 1), (0, 0.9, 1, 0.1)])
def test_regions_have_an_inside(sides):
    with pytest.raises(ProcessError, match="left before right"):
        Region(*sides)


def test_regions_that_share_an_edge_do_not_meet():
    assert not region(0).meets(region(1))
    assert region(0).meets(replace(region(1), left=0.2))


def test_a_plan_survives_plain_data():
    made = plan(background="a field")
    assert plan_from_dict(json.loads(json.dumps(asdict(made)))) == made
    assert plan_from_dict({"prompt": "a", "facts": [{"id": "f", "question": "?"}]}) == Plan("a", (Fact("f", "?"),))
    as_lists = json.loads(json.dumps(asdict(made)))
    for stroke in as_lists["strokes"]:
        stroke["region"] = list(stroke["region"].values())
    assert plan_from_dict(as_lists) == made


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a plan", "Expected a plan as an object"),
        ({"prompt": "a", "facts": "f"}, "facts as a list, got 'f'"),
        ({"prompt": "a", "facts": ["f"]}, "a fact as an object, got 'f'"),
        ({"prompt": "a", "facts": [{"id": 1, "question": "?"}]}, "id of a fact as str, got 1"),
        ({"prompt": "a", "facts": [{"id": "f"}]}, r"A fact lacks question: add what is missing to \{'id': 'f'\}"),
        ({"prompt": "a", "facts": [{"id": "f", "question": "?", "colour": "red"}]}, "no field colour"),
        ({"prompt": "a", "facts": [{"id": "f", "question": "?"}], "strokes": [3]}, "a stroke as an object, got 3"),
        (
            {
                "prompt": "a",
                "facts": [{"id": "f", "question": "?"}],
                "strokes": [{"id": "s", "operation": "add", "instruction": "x", "region": "left"}],
            },
            "region of a stroke as Region",
        ),
    ],
)
def test_data_that_is_no_plan_is_refused(data, message):
    with pytest.raises(ProcessError, match=message):
        plan_from_dict(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: "{", "Expected a trajectory as JSON"),
        (lambda data: json.dumps([1]), "no trajectory"),
        (lambda data: json.dumps({**data, "version": 99}), "another version"),
        (lambda data: json.dumps({**data, "best": 7}), "best step to be one of 5, got 7"),
        (lambda data: json.dumps({**data, "blank": [{"fact": "f9", "p": 0.5, "status": "held"}]}), "got 'f9'"),
        (lambda data: json.dumps({**data, "blank": [{"fact": "f0", "p": 0.5, "status": "good"}]}), "got 'good'"),
        (lambda data: json.dumps({**data, "steps": [{"stroke": "draft"}]}), "a step with its reflection"),
        (lambda data: json.dumps({**data, "passes": "many"}), "passes of a trajectory as int, got 'many'"),
    ],
)
def test_an_edited_or_foreign_file_is_refused(edit, message):
    whole = json.loads(paint(plan(), SlotPainter(), SlotThinker()).trajectory.to_json())
    with pytest.raises(ProcessError, match=message):
        Trajectory.from_json(edit(whole))
