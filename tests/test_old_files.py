"""Recipes, checkpoints and LoRAs that users have from earlier versions keep loading, to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dual_process import demo, overlays
from dual_process.core.tensor_file import read_tensors
from dual_process.distillation import Recipe, distill

OLD = Path(__file__).parent / "fixtures" / "v0_1"
HISTORY = json.loads((OLD / "history.json").read_text())


def load_recipe(name: str = "recipe.toml") -> Recipe:
    return Recipe.load(OLD / name, build_overlay=overlays.build)


def test_recipes_load():
    assert load_recipe() == load_recipe("recipe.json")
    assert load_recipe().penalties == {"velocity": 0.5, "range": 1.0}
    assert load_recipe().questions[0].overlay == overlays.horizon(0.3)


def test_a_checkpoint_goes_on_to_the_same_losses():
    recipe = load_recipe()
    result = distill(*demo.load(recipe.prompts), recipe, resume_from=OLD / "checkpoint.safetensors")
    assert [r.loss for r in result.history] == pytest.approx(HISTORY["loss"], rel=1e-3)
    for name, old in (("velocity", "velocity_distance"), ("range", "range_penalty")):
        ours = [r.penalties.get(name, 0.0) for r in result.history]
        assert ours == pytest.approx(HISTORY[old], rel=1e-2, abs=1e-7)


def test_a_lora_loads_and_tells_its_recipe():
    tensors, metadata = read_tensors(OLD / "lora.safetensors")
    generator, _ = demo.load(load_recipe().prompts)
    generator.load_lora_state_dict(tensors)
    written = json.loads(metadata["dual_process.recipe"])
    assert Recipe.from_dict(written, build_overlay=overlays.build) == load_recipe()
