"""Recipes: defaults, validation, and what is written can be read."""

from __future__ import annotations

import math

import pytest

from dual_process import overlays
from dual_process.distillation import Question, Recipe, RecipeError

QUESTION = Question("Is it?")


def test_the_defaults_are_the_papers():
    recipe = Recipe(QUESTION)
    assert (recipe.rank, recipe.learning_rate, recipe.max_grad_norm, recipe.train_steps) == (16, 5e-5, 1.0, 100)
    assert recipe.lora_alpha / recipe.rank == 5 * 8 / 16


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_what_is_written_can_be_read(tmp_path, suffix):
    picture = overlays.ImageOverlay.from_image(_picture())
    stack = overlays.horizon(0.3) + overlays.palette(["#112233", "red"]) + overlays.Overlay((picture,))
    recipe = Recipe(
        questions=(
            Question("Is it?", overlay=stack, weight=0.5, prompts=(0, 2)),
            Question('Is it "blue"?', "No", critic="other", paraphrases=('Is it "azure"?', "Is it bluish?")),
        ),
        prompts=("a", "b – c", "d"),
        train_steps=7,
        guidance=3.5,
        stop_probability=0.9,
        timesteps="renoise",
        seed=2**64 - 1,
        wordings="averaged",
    )
    path = tmp_path / f"recipe{suffix}"
    recipe.save(path)
    assert Recipe.load(path, build_overlay=overlays.build) == recipe


def _picture():
    from PIL import Image

    return Image.new("RGB", (3, 2), "blue")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_steps": 0}, "train_steps"),
        ({"train_steps": 1.5}, "train_steps"),
        ({"rank": -1}, "rank"),
        ({"batch_size": True}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"lora_alpha": -4}, "lora_alpha"),
        ({"velocity_weight": -0.1}, "velocity_weight"),
        ({"penalties": {"velocity": -0.1}}, "penalty velocity"),
        ({"penalties": {"speed": 1.0}}, "speed"),
        ({"penalties": 0.5}, "table of weights"),
        ({"held_out": ("sea",), "prompts": ("sea",)}, "both trained on and held out"),
        ({"anchors": {"pool": 3}}, "Anchors object"),
        ({"stop_probability": 1.5}, "stop_probability"),
        ({"guidance": -1.0}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"height": 0}, "height"),
        ({"lr_schedule": "linear"}, "'constant' or 'cosine'"),
        ({"timesteps": "random"}, "'sampler' or 'renoise'"),
        ({"wordings": "mixed"}, "wordings to be 'sampled' or 'averaged', got 'mixed'"),
        ({"prompts": "one text"}, "prompts"),
        ({"questions": ()}, "at least one Question"),
        ({"questions": 5}, "questions to be a list"),
        ({"questions": ("a",)}, "Question objects, got 'a'"),
        ({"prompts": 5}, "prompts to be a list"),
        ({"prompts": ("a", 5)}, "prompts to be texts, got 5"),
        ({"max_grad_norm": 0}, "max_grad_norm to be a number and above 0, got 0"),
        ({"gradient_accumulation": 0}, "gradient_accumulation to be a whole number of at least 1, got 0"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"width": 64.0}, "width"),
        ({"stop_steps": 0}, "stop_steps"),
        ({"stop_probability": 0.0}, "stop_probability to be a number and above 0 and at most 1, got 0.0"),
        ({"range_weight": math.inf}, "range_weight"),
        ({"learning_rate": 10**400}, "learning_rate"),
        ({"adam_beta2": 1.0}, "adam_beta2 to be a number and above 0 and at most 0.9999, got 1.0"),
        ({"seed": 2**64}, f"seed to be a whole number from 0 to {2**64 - 1}"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**{"questions": (QUESTION,), **change})


@pytest.mark.parametrize(
    "change",
    [
        *({"text": 3}, {"answer": 3}, {"critic": ""}, {"contrast": ""}, {"contrast": "Yes"}),
        *({"weight": 0.0}, {"weight": math.nan}, {"weight": True}),
        *({"prompts": ()}, {"prompts": (-1,)}, {"prompts": 3}, {"prompts": "01"}),
        *({"paraphrases": "Is it?"}, {"paraphrases": ("",)}, {"paraphrases": (3,)}),
    ],
)
def test_bad_questions_are_named(change):
    with pytest.raises(RecipeError, match=f"a question's {next(iter(change))}"):
        Question(**{"text": "Is it?", **change})


@pytest.mark.parametrize("paraphrases", [("Is it?",), ("Was it?", "Was it?")])
def test_the_same_wording_twice_is_named(paraphrases):
    with pytest.raises(RecipeError, match=r"Two wordings of the question 'Is it\?' are the same"):
        Question("Is it?", paraphrases=paraphrases)


def test_what_came_later_is_left_out_at_its_default():
    data = Recipe(QUESTION).to_dict()
    assert "wordings" not in data
    assert "paraphrases" not in data["questions"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"text": " "}, "The question is empty: type one"), ({"answer": ""}, "'Is it\\?' has no answer: type the one")],
)
def test_empty_questions_say_what_to_type(change, message):
    with pytest.raises(RecipeError, match=message):
        Question(**{"text": "Is it?", **change})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"questions": [{"text": "a"}], "step": 3}, r"Unknown recipe keys \['step'\]"),
        ({"questions": [{"text": "a", "wait": 1}]}, r"Unknown question keys \['wait'\]"),
        ({"questions": [{"answer": "Yes"}]}, "needs a text"),
        ({"questions": ["a"]}, "as a table"),
        ({"questions": "a"}, "questions as a list of tables"),
        ({"questions": [{"text": "a", "prompts": 0}]}, "a question's prompts"),
        ({}, "at least one Question"),
    ],
)
def test_bad_data_is_named(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(data)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "broken.toml").write_text("questions = [")
    with pytest.raises(RecipeError, match="neither valid TOML nor JSON"):
        Recipe.load(tmp_path / "broken.toml")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RecipeError, match=r"broken\.json is neither valid TOML nor JSON"):
        Recipe.load(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(RecipeError, match="a table of settings, got list"):
        Recipe.load(tmp_path / "list.json")
    (tmp_path / "latin.toml").write_bytes(b"prompts = ['caf\xe9']")
    with pytest.raises(RecipeError, match=r"latin\.toml"):
        Recipe.load(tmp_path / "latin.toml")
    with pytest.raises(RecipeError, match=r"missing\.toml"):
        Recipe.load(tmp_path / "missing.toml")


def test_learning_rate_schedules():
    assert Recipe(QUESTION, learning_rate=0.2).learning_rate_at(99) == 0.2
    cosine = Recipe(QUESTION, learning_rate=0.2, lr_schedule="cosine", train_steps=100)
    assert [round(cosine.learning_rate_at(s), 6) for s in (0, 50, 100)] == [0.2, 0.1, 0.0]
