"""The procedural world: the noise names the scene, and the counterfactual differs in one thing."""

from __future__ import annotations

import pytest
import torch

from dual_process.demo import world

RANDOM = torch.Generator().manual_seed(0)


def test_noise_statistics_are_uniform():
    values = world.noise_statistics(torch.randn(4000, 16, 14, 14, generator=RANDOM))
    for value in values.values():
        assert value.mean() == pytest.approx(0.5, abs=0.02)
        assert value.std() == pytest.approx(12**-0.5, abs=0.02)


def test_coupled_noise_names_its_scene_and_stays_gaussian():
    uniforms = world.random_uniforms(2000, RANDOM)
    drawn = torch.randn(2000, 16, 14, 14, generator=RANDOM)
    before = drawn.clone()
    noise = world.couple_noise(drawn, uniforms)
    assert torch.equal(drawn, before)
    for name, value in world.noise_statistics(noise).items():
        assert torch.allclose(value, uniforms[name], atol=2e-4)
    assert noise.mean() == pytest.approx(0, abs=2e-3)
    assert noise.std(dim=0).mean() == pytest.approx(1, abs=5e-3)
    assert noise[:, 0].mean(dim=(1, 2)).std() == pytest.approx(1 / 14, rel=0.05)


def test_the_counterfactual_moves_only_the_horizon():
    noise = torch.randn(3, 16, 14, 14, generator=RANDOM)
    scenes = world.scenes_from_noise(["a day sky over the sea"] * 3, noise)
    moved = world.with_horizon(scenes, 0.4)
    assert torch.equal(moved.horizon, torch.full((3,), 0.4))
    for name in vars(scenes):
        if name != "horizon":
            assert torch.equal(getattr(moved, name), getattr(scenes, name))


def test_the_rendered_horizon_is_where_it_should_be():
    noise = torch.randn(1, 16, 14, 14, generator=RANDOM)
    scenes = world.with_horizon(world.scenes_from_noise(["a day sky over the sea"], noise), 0.25)
    column = world.render(scenes)[0, 2, :, 5]
    assert column.diff().abs().argmax() == 27  # between the rows 27 and 28: 0.25 × 112 pixels lie above


@pytest.mark.parametrize("template", [0, 1])
def test_captions_read_back(template):
    for words in world.random_words(50, RANDOM):
        assert world.parse_prompt(world.caption(words, template)) == words


def test_unknown_words_are_passed_over():
    assert world.parse_prompt("A beautiful SUNSET, by the grass!") == world.Words("sunset", "grass", "none")
