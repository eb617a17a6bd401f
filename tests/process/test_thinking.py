"""Thinkers: what replies become, in which convention boxes are read, and what is asked."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_models import INFO, plan

from dual_process.core.errors import ProcessError
from dual_process.process import CriticThinker, Fact, Plan, Region, Stroke, plan_by_rules, plan_from_reply
from dual_process.process.replies import fractions_of
from dual_process.process.thinking import SIDE, dumps

WHOLE = dumps(plan(3, prompt="three things", description="three things in a row", background="a field"))
AS_IT_IS = fractions_of(1, 1)


class Scripted:
    """A critic that gives its replies in turn, and P(Yes) by question."""

    def __init__(self, *replies, yes=None, architecture="Fake"):
        self.info = replace(INFO, architecture=architecture)
        self.replies, self.yes, self.asked = list(replies), yes or {}, []

    def answer(self, images, text, max_new_tokens=16, references=()):
        self.asked.append((images, text))
        return [self.replies.pop(0)]

    def log_likelihood(self, images, questions):
        p = [self.yes[q.text] if q.answer == "Yes" else 0.9 - self.yes[q.text] for q in questions]
        return torch.tensor([p]).log()


def broken(number):
    """A reply that is broken in some way, and whether nothing can be made of it."""
    random = np.random.default_rng(number)
    data = json.loads(WHOLE)
    way = number % 8
    if way == 0:  # cut off
        return WHOLE[: int(random.integers(1, len(WHOLE)))]
    if way == 1:  # ids that are there twice
        for entry in [*data["facts"], *data["strokes"]]:
            entry["id"] = "x"
        return json.dumps(data)
    if way == 2:  # prose around it
        return f"Sure! Here is the plan:\n```json\n{WHOLE}\n```\nI hope that it helps {{:-)}}."
    if way == 3:  # wrong types
        name = str(random.choice(["facts", "strokes", "description", "background"]))
        data[name] = [3, "a tree", None, {"a": [1]}, True][int(random.integers(5))]
        return json.dumps(data)
    if way == 4:  # wrong types inside
        for entry in [*data["facts"], *data["strokes"]]:
            entry[str(random.choice(list(entry)))] = [None, 7, ["x"], {"y": 1}, False, [1, 2]][int(random.integers(6))]
        return json.dumps(data)
    if way == 5:  # not quite JSON
        return WHOLE.replace('"', "'") if random.random() < 0.5 else WHOLE.replace("}]", "},]").replace("null", "None")
    if way == 6:  # letters lost
        kept = random.random(len(WHOLE)) > 0.03
        return "".join(c for c, keep in zip(WHOLE, kept, strict=True) if keep)
    return str(random.choice(["", "I cannot do that.", "{}", "[]", "null", "{", '{"plan": 3}', "[1, 2", '"facts"']))


@pytest.mark.parametrize("way", range(8))
def test_broken_replies_become_a_plan_or_are_refused_clearly(way):
    plans = 0
    for number in range(way, 25 * 8, 8):
        refused = None
        try:
            assert isinstance(plan_from_reply("three things", broken(number), AS_IT_IS), Plan)
            plans += 1
        except ProcessError as error:
            refused = str(error)
        assert refused is None or refused.startswith(("The model was asked for a JSON", "The model's plan has no fact"))
    least = {0: 8, 1: 25, 2: 25, 3: 15, 4: 18, 5: 25, 6: 10, 7: 0}
    assert plans >= least[way]
    assert way != 7 or plans == 0


def test_a_whole_reply_is_the_plan_that_was_meant():
    found = plan_from_reply("three things", WHOLE, AS_IT_IS)
    wanted = plan(3, prompt="three things", description="three things in a row", background="a field")
    assert [(f.question, f.answer, f.stroke) for f in found.facts] == [
        (f.question, f.answer, f"s{n}") for n, f in enumerate(wanted.facts, start=1)
    ]
    assert [(s.instruction, s.region) for s in found.strokes] == [(s.instruction, s.region) for s in wanted.strokes]
    assert found.source == "critic"
    assert found.background == "a field"


def test_what_is_too_much_or_in_the_way_is_left_out():
    strokes = [{"id": n, "instruction": f"add {n}", "region": [0, 0, 0.5, 0.5]} for n in range(20)]
    facts = [{"question": f"is {n}?", "answer": "no", "stroke": n} for n in range(20)]
    found = plan_from_reply("x", json.dumps({"strokes": strokes, "facts": facts}), AS_IT_IS)
    assert (len(found.strokes), len(found.facts)) == (12, 12)
    assert [s.region is None for s in found.strokes] == [False, *[True] * 11]
    assert found.facts[3].stroke == "s4"
    assert {f.answer for f in found.facts} == {"No"}


@pytest.mark.parametrize(
    ("architecture", "box"),
    [
        ("Qwen2_5_VLForConditionalGeneration", [SIDE / 4, 0, SIDE / 2, SIDE]),
        ("Qwen3VLForConditionalGeneration", [250, 0, 500, 1000]),
        ("Idefics3ForConditionalGeneration", [0.25, 0, 0.5, 1]),
        ("Qwen3VLForConditionalGeneration", [0.25, 0, 0.5, 1]),  # fractions are understood anywhere
    ],
)
def test_boxes_are_read_as_each_family_writes_them(architecture, box):
    reply = json.dumps({"strokes": [{"instruction": "add", "bbox_2d": box}], "facts": [{"question": "?"}]})
    critic = Scripted(reply, architecture=architecture)
    assert CriticThinker(critic).plan("x").strokes[0].region == Region(0.25, 0, 0.5, 1)
    images, text = critic.asked[0]
    assert images.shape == (1, 3, SIDE, SIDE)
    assert ("1000" in text) == architecture.startswith("Qwen3")


@pytest.mark.parametrize("box", [[1, 1, 1, 1], [0, 0, 1], "here", [None] * 4, [5, 0, 2, 1]])
def test_what_is_no_rectangle_is_forgotten(box):
    reply = json.dumps({"strokes": [{"instruction": "add", "region": box}], "facts": ["?"]})
    assert plan_from_reply("x", reply, AS_IT_IS).strokes[0].region is None


def test_a_plan_is_asked_for_twice_and_then_made_by_rules_or_refused(caplog):
    critic = Scripted("no", WHOLE)
    assert CriticThinker(critic).plan("three things").source == "critic"
    assert "could not be used" in critic.asked[1][1]
    made = CriticThinker(Scripted("no", "never")).plan("a red ball and a blue house")
    assert made.source == "rules"
    assert "so rules did" in caplog.text
    with pytest.raises(ProcessError, match="The critic made no plan of 'a ball'"):
        CriticThinker(Scripted("no", "never"), rules=False).plan("a ball")
    with pytest.raises(ProcessError, match="prompt is empty"):
        CriticThinker(Scripted()).plan(" ")


def test_rules_take_each_part_for_a_thing():
    found = plan_by_rules("a blue house, a tree and a ball by night")
    assert [s.local_prompt for s in found.strokes] == ["a blue house", "a tree", "a ball by night"]
    assert found.facts[0] == Fact("f1", "Is there a blue house in the image?", stroke="s1")
    with pytest.raises(ProcessError, match="find nothing"):
        plan_by_rules(" , ")


def test_p_is_a_share_of_both_answers_for_the_one_that_is_wanted():
    thinker = CriticThinker(Scripted(yes={"a?": 0.6, "b?": 0.3}))
    p = thinker.read(torch.zeros(1, 3, 8, 8), [Fact("a", "a?"), Fact("b", "b?", "No")])
    assert p == pytest.approx([0.6 / 0.9, 0.6 / 0.9])
    assert all(map(math.isfinite, p))


STROKE = Stroke("s1", "add", "add a red house")


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ('{"fits": false, "instruction": "add a blue house"}', "add a blue house"),
        ('{"fits": true, "instruction": "add a blue house"}', STROKE.instruction),
        ("It fits.", STROKE.instruction),
        ('{"fits": false}', STROKE.instruction),
        ('{"fits": false, "instruction": 3}', STROKE.instruction),
    ],
)
def test_a_step_that_conflicts_is_corrected(reply, wanted):
    critic = Scripted(reply)
    assert CriticThinker(critic).conflict(STROKE, "a field", "a blue house") == wanted
    assert all(part in critic.asked[0][1] for part in ("a field", "a blue house", "add a red house"))


def test_reflection_names_what_was_tried_and_gives_another_instruction():
    critic = Scripted('{"wrong": "no house", "instruction": "add a house on the left"}', "hm")
    thinker, fact = CriticThinker(critic), Fact("a", "Is there a house?")
    said = thinker.reflect(torch.zeros(1, 3, 8, 8), [fact], ["add a house"], "a house")
    assert said == ("no house", "add a house on the left")
    assert all(part in critic.asked[0][1] for part in ("Is there a house? It should be Yes.", "- add a house\n"))
    assert thinker.reflect(torch.zeros(1, 3, 8, 8), [fact], ["add a house"], "a house") == (
        "Not true yet: Is there a house?",
        "add a house",
    )
