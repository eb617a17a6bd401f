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
from dual_process.evaluation import Bound, Control, Guard, evaluate, judge, make_pairs, sample_pairs
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
    target=Bound("error.mean", "lower", 0.5, relative=True, name="the mean error in pixels"),
    guards=(
        Guard("presence", "objects", least=0.6, name="object presence"),
        Guard("sharpness", "sharp edges", least=0.5),
        Guard("sharpness", "smooth areas", most=1.5),
        Guard("accuracy", "the palette", drop=0.05),
    ),
)
BEFORE = {
    "p_answer": 0.2,
    "error": {"mean": 10.0},
    "presence": 0.9,
    "sharpness": 0.8,
    "accuracy": 1.0,
    "psnr_counterfactual": 18.0,
}
LEARNED = {**BEFORE, "p_answer": 0.9, "error": {"mean": 4.0}, "psnr_counterfactual": 26.0}
NAN = float("nan")


def error(value):
    return {"error": {"mean": value}}


@pytest.mark.parametrize(
    ("change", "outcome", "lost"),
    [
        ({}, "learned", ()),
        (error(5.0), "learned", ()),
        ({"presence": 0.6, "sharpness": 1.5, "accuracy": 0.96}, "learned", ()),
        ({"presence": 0.25}, "damaged", ("objects",)),
        ({"presence": NAN}, "damaged", ("objects",)),
        ({"sharpness": 0.4}, "damaged", ("sharp edges",)),
        ({"sharpness": 1.6}, "damaged", ("smooth areas",)),
        ({"sharpness": NAN}, "damaged", ("sharp edges", "smooth areas")),
        ({"accuracy": 0.94}, "damaged", ("the palette",)),
        ({"presence": 0.5, "accuracy": 0.5}, "damaged", ("objects", "the palette")),
        ({"p_answer": 0.3, "psnr_counterfactual": 17.0}, "learned", ()),  # no guard of PSNR here, no critic won over
        (error(5.1), "hacked", ()),
        (error(NAN), "hacked", ()),
        ({**error(9.0), "presence": 0.1}, "hacked", ()),
        ({"psnr_counterfactual": 17.6}, "learned", ()),
        ({"psnr_counterfactual": 17.4}, "hacked", ()),
        ({"psnr_counterfactual": 17.4, "presence": 0.1}, "hacked", ("objects",)),
        ({"psnr_counterfactual": NAN}, "hacked", ()),
        ({**error(9.0), "p_answer": 0.39}, "not learned", ()),
        ({**error(NAN), "p_answer": NAN}, "not learned", ()),
        ({**error(12.0), "p_answer": 0.1, "presence": 0.1}, "not learned", ()),
    ],
)
def test_verdicts(change, outcome, lost):
    verdict = judge(CONTROL, BEFORE, {**LEARNED, **change})
    assert verdict.outcome == outcome
    assert verdict.lost == lost
    opening = {"damaged": "LEARNED BUT DAMAGED: "}.get(outcome, f"{outcome.upper()}: ")
    assert verdict.text.startswith(opening)
    for name in ("objects", "sharp edges", "smooth areas", "the palette"):
        assert (name in verdict.text) == (name in lost)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "LEARNED: the mean error in pixels went from 10.0 to 4.00, and nothing was lost."),
        (
            {"presence": 0.25, "sharpness": 1.6, "accuracy": 0.9},
            "LEARNED BUT DAMAGED: the mean error in pixels went from 10.0 to 4.00, but the pictures lost: objects "
            "(object presence went from 0.90 to 0.25; at least 0.60 is asked), smooth areas (sharpness went from 0.80 "
            "to 1.60; at most 1.50 is asked), the palette (accuracy went from 1.00 to 0.90; at least 0.95 is asked).",
        ),
        (
            {"psnr_counterfactual": 12.0, "presence": 0.0},
            "HACKED: the critic was won over (P(answer) went from 0.20 to 0.90), but the pictures went away from the "
            "true ones (PSNR in dB went from 18.0 to 12.0). Lost: objects (object presence went from 0.90 to 0.00; at "
            "least 0.60 is asked).",
        ),
        (
            {**error(9.0), "psnr_counterfactual": 12.0, "presence": 0.0},
            "HACKED: the critic was won over (P(answer) went from 0.20 to 0.90), but the mean error in pixels went "
            "from 10.0 to 9.00, where at most 5.00 is asked, and the pictures went away from the true ones (PSNR in dB "
            "went from 18.0 to 12.0).",
        ),
        (
            {**error(9.0), "p_answer": 0.3, "presence": 0.5},
            "NOT LEARNED: the mean error in pixels went from 10.0 to 9.00, where at most 5.00 is asked.",
        ),
    ],
)
def test_verdicts_say_it_in_plain_words(change, text):
    assert judge(CONTROL, BEFORE, {**LEARNED, **change}).text == text


def test_a_share_that_should_rise():
    control = replace(CONTROL, target=Bound("share", "higher", 0.2, name="the share of night"), guards=())
    before = {"p_answer": 0.4, "share": 0.5}
    assert judge(control, before, {"p_answer": 0.5, "share": 0.71}).outcome == "learned"
    text = "NOT LEARNED: the share of night went from 0.50 to 0.60, where at least 0.70 is asked."
    assert judge(control, before, {"p_answer": 0.5, "share": 0.6}).text == text


def test_what_too_few_pairs_cannot_tell_is_no_loss_and_is_said():
    before = {name: value for name, value in BEFORE.items() if name != "presence"}
    after = {name: value for name, value in LEARNED.items() if name != "presence"}
    verdict = judge(CONTROL, before, after)
    assert verdict.outcome == "learned"
    assert verdict.text.endswith("nothing was lost. Too few pairs to tell about: objects.")


def test_a_guard_without_limits_guards_nothing():
    with pytest.raises(ValueError, match="no limit"):
        Guard("presence", "objects")


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
    measures = evaluate(control, FakeCritic(), images, images, pairs, trained=False)
    assert measures == {"p_answer": pytest.approx(((a + b) / 2).mean().item(), rel=1e-5), "seen": 20}


def test_evaluation_asks_every_wording_and_counts_a_question_once():
    control = replace(CONTROL, recipe=Recipe((Question("a", paraphrases=("c", "d")), Question("b"))))
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = make_pairs(control, 20, lambda seeds: torch.tensor(seeds))
    a, b, c, d = (torch.sigmoid(images.flatten(1) @ FakeCritic.direction(text)).mean() for text in "abcd")
    measures = evaluate(control, FakeCritic(), images, images, pairs, trained=False)
    assert measures == {"p_answer": pytest.approx((((a + c + d) / 3 + b) / 2).item(), rel=1e-5)}


def test_a_control_may_ask_less_than_its_recipe():
    recipe = Recipe((Question("a"), Question("b", prompts=(0,))))
    control = replace(CONTROL, recipe=recipe, asked=recipe.questions[:1])
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = make_pairs(control, 3, lambda seeds: torch.tensor(seeds))
    p = torch.sigmoid(images.flatten(1) @ FakeCritic.direction("a")).mean()
    measures = evaluate(control, FakeCritic(), images, images, pairs, trained=False)
    assert measures == {"p_answer": pytest.approx(p.item(), rel=1e-5)}


@pytest.mark.parametrize("question", [Question("a", prompts=(0,)), Question("a", critic="second")])
def test_every_picture_is_asked_every_question(question):
    with pytest.raises(ValueError, match="one critic about every held-out picture"):
        replace(CONTROL, recipe=Recipe((question,)))


def test_trained_prompts_are_not_held_out():
    with pytest.raises(ValueError, match="both trained on and held out"):
        Control("c", Recipe(Question("a"), prompts=("x",)), ("x",), CONTROL.measure, CONTROL.target, ())
