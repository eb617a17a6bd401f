"""What VLM Question asks: what is typed, or the overlay's own wordings and guards."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from node_inputs import QUESTION

from dual_process import overlays

pytestmark = pytest.mark.comfyui
LINE, STRIP = overlays.horizon(0.3), overlays.palette(["#6a4a82", "#e89a5c"])
GUARD = "Is the image free of any red line drawn across it?"


@pytest.fixture
def ask(run, pack, monkeypatch):
    """The questions of the node, and the lines that it shows."""
    shown = []
    monkeypatch.setattr(
        import_module(f"{pack.__name__}.nodes.questions"), "show_text", lambda *told: shown.append(told)
    )

    def execute(question="", **inputs):
        shown.clear()
        asked = run("VLMQuestion", **{"question": question, "answer": "Yes", "weight": 1.0, **inputs})[0]
        assert all(node_id == "1" for _, node_id in shown)
        return asked, [line for text, _ in shown for line in text.splitlines()]

    return execute


def test_what_is_typed_is_asked(ask):
    ((question,), shown) = ask(" Is it red? ", paraphrases="Is it scarlet?\n\n  Is it crimson? \n", overlay=LINE)
    assert question.texts == ("Is it red?", "Is it scarlet?", "Is it crimson?")
    assert question.overlay == LINE
    assert shown == []


def test_an_empty_question_asks_the_overlays_own_wordings_and_shows_them(ask):
    ((question,), shown) = ask(overlay=LINE, weight=2.0, prompts="2")
    assert question.texts == LINE.questions()
    assert (question.answer, question.weight, question.prompts) == ("Yes", 2.0, (1,))
    assert shown == [*LINE.questions()]
    questions, _ = ask(overlay=LINE + STRIP)
    assert [(q.texts, q.weight) for q in questions] == [(LINE.questions(), 0.5), (STRIP.questions(), 0.5)]


def test_guards_join_without_the_overlay_and_weigh_half(ask):
    questions, shown = ask(QUESTION, overlay=LINE + STRIP, weight=2.0, guards=True, prompts="1", contrast="No")
    assert [q.text for q in questions] == [QUESTION, *(LINE + STRIP).guards()]
    told = [(q.overlay, q.answer, q.weight, q.role, q.prompts, q.contrast) for q in questions[1:]]
    assert told == [(None, "Yes", 0.5, "keep", (0,), None)] * 2
    assert shown == [QUESTION, *(LINE + STRIP).guards()]


def test_a_batch_of_images_becomes_references_and_grades_a_scale(ask):
    pictures = torch.rand(2, 8, 12, 3)
    ((question,), _) = ask("Is it like picture A?", references=pictures, grades="1, 2 ,3", answer="3")
    assert len(question.references) == 2
    for reference, picture in zip(question.references, pictures, strict=True):
        assert (reference.tensor() - picture.movedim(-1, 0)).abs().max() <= 0.51 / 255
    assert (question.grades, question.answer) == (("1", "2", "3"), "3")


def test_the_demo_critic_is_asked_beside_a_reference_and_on_a_scale(run, ask, demo_models):
    pictures = torch.rand(1, 112, 112, 3, generator=torch.Generator().manual_seed(0))
    graded, _ = ask("Is it night?", references=pictures, grades="No, Yes", answer="Yes")
    alone, _ = ask("Is it night?", references=torch.zeros(1, 40, 60, 3))
    text, p_answer, _ = run(
        "AskVLMCritic",
        critic=demo_models[3],
        image=pictures,
        questions={"question0": (*graded, *alone)},
        max_new_tokens=2,
    ).args
    first, second = text.splitlines()
    assert "expected grade towards Yes = " in first
    assert "P(Yes) = " in second
    assert all(0 < p < 1 for p in p_answer)


def test_grey_and_transparent_references_are_as_loaders_give_them(ask):
    ((question,), _) = ask("Is it like picture A?", references=torch.rand(1, 5, 7, 4))  # RGBA
    assert question.references[0].tensor().shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"question": "How?", "grades": "1, 5"}, "the answer of a graded question to be '1' or '5', got 'Yes'"),
        ({"question": "How?", "grades": "5", "answer": "5"}, "at least two different texts"),
        ({"question": "  "}, "The question is empty: type one, or connect an overlay"),
        ({"overlay": LINE, "paraphrases": "Is it?"}, "There are paraphrases of no question"),
        ({"question": "Is it?", "guards": True}, "Guards are the overlay's: connect one"),
        ({"question": "Is it?", "paraphrases": "Is it?"}, "Two wordings of the question 'Is it\\?' are the same"),
    ],
)
def test_what_cannot_be_asked_says_what_to_change(ask, inputs, message):
    with pytest.raises(Exception, match=message):
        ask(**inputs)


def test_wordings_and_guards_reach_training_beside_the_presets_keep_questions(ask, pack, run, demo_models, monkeypatch):
    teaching = import_module(f"{pack.__name__}.nodes.teaching")
    prompts = run("TrainingPrompts", clip=demo_models[1], text="the sea with a tree", held_out="")[0]
    loss = run("VQALoss", critic=demo_models[3], questions={"question0": ask(overlay=LINE, guards=True)[0]})[0]
    plan = SimpleNamespace(preset=import_module(f"{pack.__name__}.distillation").PRESETS["demo"], recipe={})
    widgets = {"seed": 0, "gradient_accumulation": 1, "max_grad_norm": 1.0, "timesteps": "sampler"}
    widgets |= {"stop_probability": 1.0, "keep_questions": "from the preset", "wordings": "averaged"}
    _, recipe = teaching.make_recipe(SimpleNamespace(prompts=prompts, loss=loss), plan, widgets)
    assert recipe.wordings == "averaged"
    assert [q.text for q in recipe.questions[:2]] == [LINE.questions()[0], GUARD]
    assert "Is there a tree in the image?" in [q.text for q in recipe.questions[2:]]
    assert json.loads(recipe.to_json())["questions"][0]["paraphrases"] == [*LINE.questions()[1:]]


def test_ask_vlm_critic_tries_every_wording(ask, run, demo_models):
    asked = ask(overlay=LINE, guards=True)[0]
    picture = torch.rand(1, 112, 112, 3, generator=torch.Generator().manual_seed(0))
    answers, p_answer, shown = run(
        "AskVLMCritic", critic=demo_models[3], image=picture, questions={"question0": asked}, max_new_tokens=4
    ).args
    assert len(p_answer) == 4
    for line, text in zip(answers.splitlines(), [*LINE.questions(), GUARD], strict=True):
        assert line.startswith(f"image 1: {text} → ")
    assert torch.equal(shown.movedim(-1, 1), LINE.apply(picture.movedim(-1, 1)))
