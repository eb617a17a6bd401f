"""Presets: each is a recipe that holds, and what nobody knows gets the general one."""

from __future__ import annotations

import pytest

from dual_process.demo.controls import horizon_control
from dual_process.distillation import GENERAL, PRESETS, Question, Recipe, keep_questions, preset_for


@pytest.mark.parametrize("preset", [*PRESETS.values(), GENERAL], ids=lambda preset: preset.name)
def test_every_preset_makes_a_recipe(preset):
    made = Recipe(questions=(Question("a"),), **preset.recipe)
    assert made.penalties["anchors"] == 1.0
    assert preset.source
    assert preset.least_steps <= preset.steps <= (preset.most_steps or preset.steps)
    assert f"{preset.width} × {preset.height} pixels" in preset.describe()


def test_the_demo_preset_is_what_the_demo_trains_with():
    trained = horizon_control().recipe
    for name, value in PRESETS["demo"].recipe.items():
        assert getattr(trained, name) == value, name


def test_keep_questions_say_what_prompts_say():
    prompts = ("a day sky over the sea", "a Tree under a night sky", "a treehouse with a ball")
    asked = keep_questions(PRESETS["demo"], prompts)
    assert [(q.text, q.answer, q.prompts) for q in asked if q.answer == "Yes"] == [
        ("Is there a tree in the image?", "Yes", (1,)),
        ("Is there a ball in the image?", "Yes", (2,)),
    ]
    assert [q.prompts for q in asked if q.answer == "No"] == [(0, 1, 2), (0, 2), (0, 1)]
    assert {q.role for q in asked} == {"keep"}
    (one,) = keep_questions(PRESETS["flux-1-dev"], prompts)
    assert one.text.startswith('Does this figure show "{prompt}"?')


def test_unknown_architectures():
    assert preset_for("flux-1-dev").steps == 28
    assert preset_for("something-new") is GENERAL
