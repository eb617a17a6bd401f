"""Measures against the renderer and by hand; verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import FakeCritic, FakeGenerator
from skimage.color import deltaE_ciede2000, rgb2lab

from dual_process import overlays
from dual_process.demo import world
from dual_process.distillation import Question, Recipe
from dual_process.evaluation import Bound, Control, evaluate, judge, make_pairs, sample_pairs
from dual_process.evaluation.measures import (
    brightness,
    dominant_colors,
    horizon_position,
    palette_distance,
    palette_error,
    psnr,
)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_horizon_is_found_to_a_fraction_of_a_pixel(noise):
    random = torch.Generator().manual_seed(3)
    scenes = world.random_scenes(64, random)
    images = (world.render(scenes) + noise * torch.randn(64, 3, 112, 112, generator=random)).clamp(0, 1)
    error = (horizon_position(images) - scenes.horizon).abs() * 112
    assert error.mean() < 0.1
    assert error.max() < 0.5


def test_brightness_and_psnr_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 1] = 0.5
    assert brightness(image) == pytest.approx(0.7152 * 0.5)
    assert psnr(image, image + 0.1) == pytest.approx(20.0, abs=1e-4)


def test_palette_distance_of_single_colours_is_ciede2000():
    one, two = np.array([[0.2, 0.4, 0.6]]), np.array([[0.6, 0.5, 0.1]])
    wanted = float(deltaE_ciede2000(rgb2lab(one), rgb2lab(two))[0])
    assert palette_distance(one, np.ones(1), two) == pytest.approx(wanted)
    assert palette_distance(one, np.ones(1), one) == pytest.approx(0.0, abs=1e-9)


def test_palette_distance_counts_both_ways():
    black, white = np.zeros((1, 3)), np.ones((1, 3))
    apart = float(deltaE_ciede2000(rgb2lab(black), rgb2lab(white))[0])
    both = np.concatenate([black, white])
    # First the picture's white tenth is met by no swatch, then the strip's white half by nothing in the picture.
    assert palette_distance(both, np.array([0.9, 0.1]), black) == pytest.approx(0.5 * 0.1 * apart)
    assert palette_distance(black, np.ones(1), both) == pytest.approx(0.25 * apart)


def test_dominant_colours_of_a_picture_of_two():
    image = torch.zeros(3, 16, 16)
    image[0, :4] = 1.0
    colors, shares = dominant_colors(image, count=2)
    order = shares.argsort()
    assert shares[order].tolist() == [0.25, 0.75]
    assert colors[order].round(6).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert palette_error(image[None], torch.tensor([[1.0, 0, 0], [0, 0, 0]]))[0] < 0.5


CONTROL = Control(
    name="toy",
    recipe=Recipe(Question("a"), prompts=("x",)),
    held_out=("y",),
    measure=lambda images, base, pairs: {},
    target=Bound("error.mean", "lower", 0.5, relative=True),
    guards=(Bound("accuracy", "higher", 0.05),),
)


@pytest.mark.parametrize(
    ("error", "accuracy", "outcome"),
    [
        (4.0, 1.0, "learned"),
        (5.0, 0.96, "learned"),
        (4.0, 0.90, "hacked"),
        (9.0, 1.0, "not learned"),
        (9.0, 0.9, "hacked"),
        (9.8, 0.9, "not learned"),
        (12.0, 1.0, "not learned"),
        (12.0, 0.5, "not learned"),
        (float("nan"), 1.0, "not learned"),
        (4.0, float("nan"), "hacked"),
    ],
)
def test_verdicts(error, accuracy, outcome):
    before = {"error": {"mean": 10.0}, "accuracy": 1.0}
    verdict = judge(CONTROL, before, {"error": {"mean": error}, "accuracy": accuracy})
    assert verdict.outcome == outcome
    assert "error.mean" in verdict.text
    assert ("accuracy" in verdict.text) == (not accuracy >= 0.95)
    assert ("HACKED" in verdict.text) == (outcome == "hacked")


def test_pairs_go_round_the_held_out_prompts():
    control = replace(CONTROL, recipe=Recipe(Question("a"), prompts=("sea",)), held_out=("sand", "grass"))
    pairs = make_pairs(control, 5, lambda seeds: torch.tensor(seeds))
    assert pairs.indices == (1, 2, 1, 2, 1)
    assert pairs.prompts == ("sand", "grass", "sand", "grass", "sand")
    assert len(set(pairs.seeds)) == len(pairs) == 5
    assert tuple(pairs.noise.tolist()) == pairs.seeds
    generator = FakeGenerator(control.prompts)
    generator.add_lora(2, 4.0, seed=0)
    generator.b.data.fill_(0.1)
    trained = sample_pairs(generator, pairs, lora_scale=1.0, batch=2)
    assert torch.allclose(trained, generator.sample(pairs.indices, pairs.seeds), atol=1e-6)
    assert (trained - sample_pairs(generator, pairs, lora_scale=0.0)).abs().max() > 0.1


def test_evaluation_asks_what_training_asked():
    line = overlays.horizon(0.5, thickness=0.5)
    recipe = Recipe((Question("a", overlay=line), Question("b")))
    control = replace(CONTROL, recipe=recipe, measure=lambda images, base, pairs: {"seen": len(pairs)})
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = make_pairs(control, 20, lambda seeds: torch.tensor(seeds))
    a = torch.sigmoid(line.apply(images).flatten(1) @ FakeCritic.direction("a"))
    b = torch.sigmoid(images.flatten(1) @ FakeCritic.direction("b"))
    measures = evaluate(control, FakeCritic(), images, images, pairs)
    assert measures == {"p_answer": pytest.approx(((a + b) / 2).mean().item(), rel=1e-5), "seen": 20}


@pytest.mark.parametrize("question", [Question("a", prompts=(0,)), Question("a", critic="second")])
def test_every_picture_is_asked_every_question(question):
    with pytest.raises(ValueError, match="one critic about every held-out picture"):
        replace(CONTROL, recipe=Recipe((question,)))


def test_trained_prompts_are_not_held_out():
    with pytest.raises(ValueError, match="both trained on and held out"):
        Control("c", Recipe(Question("a"), prompts=("x",)), ("x",), CONTROL.measure, CONTROL.target, ())
