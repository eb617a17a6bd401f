"""Pictures in overlays: written once, found again, and in the old form still read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeCritic, FakeGenerator, recipe
from PIL import Image

from dual_process import overlays
from dual_process.core.tensor_file import read_tensors
from dual_process.distillation import Question, Recipe, RecipeError, distill
from dual_process.distillation.checkpoint import Checkpoint
from dual_process.overlays import ImageOverlay, Overlay

WORDINGS = ("Is it?", "Is it really?", "Does it match?", "Would you say that it does?")
ABSENT = "sha256:" + "0" * 64


def noise(side: int, seed: int = 0) -> bytes:
    """A PNG of about 3 · side² bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def asking(*pictures: bytes, **changes) -> Recipe:
    """Every picture with every wording."""
    questions = [Question(text, overlay=Overlay((ImageOverlay(p),))) for p in pictures for text in WORDINGS]
    return recipe(*questions, **changes)


def embedded(settings: Recipe) -> dict:
    """Plain data as version 0.1 wrote it: the picture in every question."""
    data = settings.to_dict()
    table = data.pop("pictures")
    for row in data["questions"]:
        for layer in row["overlay"]:
            layer["png"] = table[layer["png"]]
    return data


def test_references_are_written_once_and_read_from_files(tmp_path):
    (tmp_path / "style.png").write_bytes(noise(64))
    text = """[[questions]]
text = "Is it in the style of picture A?"
references = [{ file = "style.png" }]
[[questions]]
text = "How alike are it and picture A?"
answer = "5"
grades = ["1", "2", "3", "4", "5"]
references = [{ file = "style.png" }]
"""
    (tmp_path / "style.toml").write_text(text)
    settings = Recipe.load(tmp_path / "style.toml")
    (reference,) = settings.questions[0].references
    assert reference.tensor().shape == (3, 64, 64)
    data = settings.to_dict()
    assert len(data["pictures"]) == 1
    assert Recipe.from_dict(json.loads(settings.to_json())) == settings
    settings.save(tmp_path / "again.toml")
    (tmp_path / "style.png").unlink()
    assert Recipe.load(tmp_path / "again.toml") == settings


def test_four_questions_with_one_large_picture_are_saved_and_read(tmp_path):
    settings = asking(noise(2800), train_steps=1)
    assert 4 * len(settings.questions[0].overlay.layers[0].png) * 4 / 3 > 100_000_000  # what a header may hold
    result = distill(FakeGenerator(), FakeCritic(), settings)
    _, metadata = read_tensors(result.save(tmp_path / "lora.safetensors"))
    assert Recipe.from_dict(json.loads(metadata["dual_process.recipe"]), overlays.build) == settings
    path = result.save_checkpoint(tmp_path / "checkpoint.safetensors")
    longer = distill(FakeGenerator(), FakeCritic(), replace(settings, train_steps=2), resume_from=path)
    assert longer.steps == 2


def test_each_picture_is_written_once_under_its_hash():
    pictures = [noise(32, seed) for seed in (1, 2)]
    data = asking(*pictures).to_dict()
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    keys = [f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" for text in texts]
    assert data["pictures"] == dict(zip(keys, texts, strict=True))
    assert [row["overlay"][0]["png"] for row in data["questions"]] == [keys[0]] * 4 + [keys[1]] * 4


def test_recipes_without_long_texts_have_no_table():
    data = recipe(Question("Is it?", overlay=overlays.horizon(0.3))).to_dict()
    assert "pictures" not in data
    assert data["questions"][0]["overlay"] == overlays.horizon(0.3).to_dict()


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_files_hold_a_picture_once_and_load_equal(tmp_path, suffix):
    picture = noise(32)
    settings, path = asking(picture, prompts=("sea",)), tmp_path / f"recipe{suffix}"
    settings.save(path)
    assert path.read_text().count(base64.b64encode(picture).decode()) == 1
    assert Recipe.load(path, overlays.build) == settings
    plain = Recipe.load(path)  # overlays as plain data, with the picture in place
    assert overlays.build(plain.questions[3].overlay) == settings.questions[3].overlay
    assert plain.to_dict() == settings.to_dict()


def test_recipes_that_embed_the_picture_still_load():
    settings = asking(noise(32))
    old = embedded(settings)
    assert Recipe.from_dict(old, overlays.build) == settings
    one_layer = {"questions": [{"text": "Is it?", "overlay": old["questions"][0]["overlay"][0]}]}
    assert Recipe.from_dict(one_layer, overlays.build).questions[0].overlay == settings.questions[0].overlay


def test_checkpoints_that_embed_the_picture_still_resume(tmp_path):
    settings = asking(noise(32), train_steps=4)
    taken = distill(FakeGenerator(), FakeCritic(), replace(settings, train_steps=2)).checkpoint
    old = replace(taken, metadata={**taken.metadata, "recipe": json.dumps(embedded(settings), sort_keys=True)})
    path = Checkpoint.save(old, tmp_path / "c.safetensors")
    assert distill(FakeGenerator(), FakeCritic(), settings, resume_from=path).steps == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"questions": [{"text": "a", "overlay": {"kind": "image", "png": ABSENT}}]}, f"'{ABSENT}'.* lacks"),
        ({"questions": [{"text": "a", "overlay": [{"png": ABSENT}]}], "pictures": {}}, f"'{ABSENT}'.* lacks"),
        ({"questions": [{"text": "a"}], "pictures": ["a"]}, r"pictures as a table of base64 texts.*\['a'\]"),
        ({"questions": [{"text": "a"}], "pictures": {ABSENT: 3}}, "pictures as a table of base64 texts"),
    ],
)
def test_what_is_not_in_the_table_is_named(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(data, overlays.build)
