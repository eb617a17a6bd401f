"""Recipes, checkpoints and LoRAs that users have from earlier versions keep loading, to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dual_process import demo, overlays
from dual_process.core.tensor_file import read_tensors
from dual_process.distillation import Recipe, distill

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("v0_1", "v0_2")


def load_recipe(version: str, name: str = "recipe.toml") -> Recipe:
    return Recipe.load(FIXTURES / version / name, build_overlay=overlays.build)


@pytest.mark.parametrize("version", VERSIONS)
def test_recipes_load(version):
    recipe = load_recipe(version)
    assert recipe == load_recipe(version, "recipe.json")
    assert recipe.questions[0].overlay == overlays.horizon(0.3)


def test_old_names_of_penalties():
    assert load_recipe("v0_1").penalties == {"velocity": 0.5, "range": 1.0}


def history_of(version: str) -> tuple[list[float], list[dict[str, float]]]:
    """Losses and penalties of each step, as they were."""
    history = json.loads((FIXTURES / version / "history.json").read_text())
    if "penalties" in history:
        return history["loss"], history["penalties"]
    rows = zip(history["velocity_distance"], history["range_penalty"], strict=True)
    return history["loss"], [{"velocity": velocity, "range": out} for velocity, out in rows]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_goes_on_to_the_same_losses(version):
    recipe = load_recipe(version)
    checkpoint = FIXTURES / version / "checkpoint.safetensors"
    result = distill(*demo.load(recipe.prompts), recipe, resume_from=checkpoint)
    losses, penalties = history_of(version)
    assert [r.loss for r in result.history] == pytest.approx(losses, rel=1e-3)
    for report, old in zip(result.history, penalties, strict=True):
        assert {name: report.penalties.get(name, 0.0) for name in old} == pytest.approx(old, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_loads_and_tells_its_recipe(version):
    tensors, metadata = read_tensors(FIXTURES / version / "lora.safetensors")
    generator, _ = demo.load(load_recipe(version).prompts)
    generator.load_lora_state_dict(tensors)
    written = json.loads(metadata["dual_process.recipe"])
    assert Recipe.from_dict(written, build_overlay=overlays.build) == load_recipe(version)
