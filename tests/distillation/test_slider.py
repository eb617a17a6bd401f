"""A question whose overlay runs from one to another trains two parts of a LoRA, and both are saved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe
from typer.testing import CliRunner

from dual_process import overlays
from dual_process.cli import app
from dual_process.core.errors import LoraFileError
from dual_process.core.tensor_file import read_tensors, write_tensors
from dual_process.distillation import Anchors, Question, Recipe, distill, read_slider, slider_path
from dual_process.distillation.anchors import SLIDER_VALUES, draw_anchors, find_anchors
from dual_process.distillation.draws import draw_batch, draw_slider

ENDS = overlays.between(overlays.horizon(0.3, thickness=0.3), overlays.horizon(0.7, thickness=0.3))
ASKED = (Question("a", overlay=ENDS), Question("b", role="keep"))


def ranged(**changes):
    return recipe(*ASKED, **{"gradient_accumulation": 2, **changes})


def test_the_batches_of_a_step_share_the_range_out():
    plan = ranged(gradient_accumulation=3)
    steps = [[draw_slider(plan, step, batch) for batch in range(3)] for step in range(200)]
    for values in steps:
        assert sorted(int((value / 1.1 + 1) / 2 * 3) for value in values) == [0, 1, 2]
    drawn = torch.tensor(steps)
    assert (drawn.min(), drawn.max()) == (-1, 1)  # exactly, now and then
    assert 0.02 < (drawn == 1).float().mean() < 0.08
    assert abs(drawn.mean()) < 0.02
    assert [draw_slider(plan, 7, batch) for batch in range(3)] == steps[7]
    assert draw_slider(replace(plan, seed=1), 7, 0) != steps[7][0]
    assert draw_slider(recipe(Question("a")), 7, 0) is None


class Watching(FakeCritic):
    def log_likelihood(self, images, questions):
        if questions[0].text == "a":
            self.seen = [*getattr(self, "seen", []), images.detach()]
        return super().log_likelihood(images, questions)


def test_the_overlay_is_drawn_where_the_batchs_value_puts_it():
    generator, critic, previews = FakeGenerator(), Watching(), []
    distill(generator, critic, ranged(train_steps=3), on_step=lambda _, preview: previews.append(preview))
    values = [draw.sampling.slider for draw in generator.draws]
    assert len({*values}) == len(critic.seen) == 6
    for preview in previews:  # of a step's last batch
        number = values.index(preview.slider)
        assert torch.allclose(critic.seen[number], ENDS.at(preview.slider).apply(preview.image))


def test_both_parts_learn_and_a_resumed_run_is_the_same(tmp_path):
    once = distill(FakeGenerator(), FakeCritic(), ranged(train_steps=4))
    half = distill(
        FakeGenerator(), FakeCritic(), ranged(train_steps=4), should_stop=iter([False] * 2 + [True]).__next__
    )
    assert 0 < half.steps < 4
    path = half.save_checkpoint(tmp_path / "checkpoint.safetensors")
    resumed = distill(FakeGenerator(), FakeCritic(), ranged(train_steps=4), resume_from=path)
    for name, parameter in once.generator.lora_parameters().items():
        assert torch.equal(parameter, resumed.generator.lora_parameters()[name])
        assert parameter.abs().max() > 0


def test_anchors_are_those_of_the_nearest_value():
    plan = ranged(penalties={"anchors": 1.0}, anchors=Anchors(pool=8, threshold=0.9, least=2))
    generator = FakeGenerator()
    generator.add_lora(2, 4.0, 0, slider=True)
    anchors = find_anchors(generator, {"default": FakeCritic()}, plan, 2)
    assert [a.slider for a in anchors] == [value for value in SLIDER_VALUES for _ in range(2)]
    for step in range(20):
        value = draw_slider(plan, step, 0)
        judged = draw_batch(plan, step, 0, 2, 3, value)
        beside = draw_anchors(plan, step, 0, anchors, judged, 3)
        assert abs(beside.sampling.slider - value) <= 0.125 + 1e-9
        own = {(a.prompt_index, a.noise_seed) for a in anchors if a.slider == beside.sampling.slider}
        assert {*zip(beside.prompt_indices, beside.noise_seeds, strict=True)} <= own


@pytest.fixture
def saved(tmp_path):
    """A result, and the path of its constant part."""
    result = distill(FakeGenerator(), FakeCritic(), ranged(train_steps=2))
    return result, result.save(tmp_path / "horizon.safetensors")


def test_two_files_are_written_and_read_together(saved):
    result, path = saved
    parts = read_slider(path)
    assert torch.equal(parts.constant["layer.lora_B"], result.generator.b)
    assert torch.equal(parts.slider["layer.lora_B"], result.generator.slider[1])
    assert overlays.build(parts.overlays[0]) == ENDS
    _, metadata = read_tensors(slider_path(path))
    again = Recipe.from_dict(json.loads(metadata["dual_process.recipe"]), overlays.build)
    assert again == result.recipe
    assert sorted(file.name for file in path.parent.iterdir()) == ["horizon.safetensors", "horizon.slider.safetensors"]


def test_a_recipe_without_a_range_writes_one_file(tmp_path):
    path = distill(FakeGenerator(), FakeCritic(), recipe(train_steps=1)).save(tmp_path / "plain.safetensors")
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(LoraFileError, match="no LoRA with a slider"):
        read_slider(path)


def test_files_that_do_not_belong_together_are_refused(saved, tmp_path):
    _, path = saved
    with pytest.raises(LoraFileError, match="slider part"):
        read_slider(slider_path(path))
    other = distill(FakeGenerator(), FakeCritic(), ranged(train_steps=2, seed=5)).save(tmp_path / "other.safetensors")
    slider_path(other).replace(slider_path(path))
    with pytest.raises(LoraFileError, match="belongs to another constant part"):
        read_slider(path)
    with pytest.raises(LoraFileError, match=r"other.slider.safetensors is not beside it"):
        read_slider(other)


def test_the_command_line_says_what_a_slider_is(saved):
    _, path = saved
    for file, part in ((path, "constant"), (slider_path(path), "slider")):
        told = CliRunner().invoke(app, ["inspect", str(file)], env={"COLUMNS": "200"}).stdout
        assert f"horizon at 30 % … horizon at 70 %; this is its {part} part, of two files" in told


def test_the_command_line_converts_both_files(saved, tmp_path):
    from tiny_flux import build_pipeline

    from dual_process.generators import load_generator

    _, path = saved
    _, metadata = read_tensors(path)
    generator = load_generator(build_pipeline("schnell"), prompts=["sea"], device="cpu", height=32, width=32)
    generator.add_lora(2, 4.0, 0, slider=True)
    for file, slider in ((path, False), (slider_path(path), True)):
        _, metadata = read_tensors(file)
        write_tensors(file, generator.lora_state_dict(slider=slider), metadata)
    target = tmp_path / "native.safetensors"
    done = CliRunner().invoke(app, ["convert", str(path), "--to", "comfyui", "--output", str(target)])
    assert done.exit_code == 0
    parts = read_slider(target)
    assert all(name.startswith("diffusion_model.") for name in (*parts.constant, *parts.slider))
    refused = CliRunner().invoke(app, ["convert", str(path), "--to", "comfyui", "--output", str(target)])
    assert refused.exit_code == 1
    assert "is there already" in refused.stderr
