"""What the controls are held against: own scenes before, the counterfactual after; every guard has its measure."""

from __future__ import annotations

import pytest
import torch

from dual_process.demo import world
from dual_process.demo.controls import CONTROLS
from dual_process.evaluation import evaluate, make_pairs
from dual_process.evaluation.held_out import PROMPTS, SEEDS, judge_without_truth
from dual_process.evaluation.measures import high_frequency_energy, psnr, seed_diversity
from dual_process.generators.noise import draw_noise


class Undecided:
    """A critic that says nothing."""

    def log_likelihood(self, images, questions):
        return torch.full((len(images), len(questions)), 0.5).log()


@pytest.fixture
def pairs_of():
    """28 held-out pairs of a control: objects, and one prompt twice."""
    return lambda control: make_pairs(control, 28, lambda seeds: draw_noise(seeds, world.LATENT_CHANNELS, 14, 14))


@pytest.mark.parametrize("name", ["horizon", "night"])
def test_before_is_held_against_its_own_scenes_and_after_against_the_counterfactual(name, pairs_of):
    control = CONTROLS[name]()
    pairs = pairs_of(control)
    scenes = world.scenes_from_noise(pairs.prompts, pairs.noise)
    wanted = (
        world.with_horizon(scenes, 0.3) if name == "horizon" else world.with_time(pairs.prompts, pairs.noise, "night")
    )
    base, trained = world.render(scenes), world.render(wanted)
    before = evaluate(control, Undecided(), base, base, pairs, trained=False)
    after = evaluate(control, Undecided(), trained, base, pairs, trained=True)
    for measures in (before, after):
        assert measures["object_presence"] == pytest.approx(1)
        assert measures["ground_color_error"] == pytest.approx(0, abs=1e-6)
        assert measures["diversity"] == pytest.approx(1)
    assert before["psnr_counterfactual"] == pytest.approx(psnr(base, trained).mean().item())
    assert after["psnr_counterfactual"] == pytest.approx(100)  # where the measure ends
    unmoved = evaluate(control, Undecided(), base, base, pairs, trained=True)
    assert unmoved["ground_color_error"] > 1
    assert unmoved["psnr_counterfactual"] == before["psnr_counterfactual"]


def test_palettes_are_held_against_the_base_pictures(pairs_of):
    control = CONTROLS["palette"]()
    pairs = pairs_of(control)
    base = world.render(world.scenes_from_noise(pairs.prompts, pairs.noise))
    after = evaluate(control, Undecided(), 0.5 + 0.5 * (base - 0.5), base, pairs, trained=True)
    assert after["object_presence"] == pytest.approx(0.25, rel=1e-4)
    assert "psnr_counterfactual" not in after


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_guard_has_its_measure(name, pairs_of):
    control = CONTROLS[name]()
    pairs = pairs_of(control)
    base = world.render(world.scenes_from_noise(pairs.prompts, pairs.noise))
    before = evaluate(control, Undecided(), base, base, pairs, trained=False)
    assert [g.measure for g in control.guards if not g.measured(before)] == []


@pytest.mark.parametrize("line", [0.25, 0.7])
def test_a_perfect_control_passes_the_limits_of_few_held_out_pictures(line):
    """A fixed horizon leaves less to vary, and four prompts of two seeds measure that coarsely."""
    held_out = CONTROLS["horizon"]().held_out
    for first in range(0, len(held_out) - PROMPTS, 3):
        prompts = [p for p in held_out[first : first + PROMPTS] for _ in range(SEEDS)]
        noise = draw_noise(range(100 * first, 100 * first + len(prompts)), world.LATENT_CHANNELS, 14, 14)
        scenes = world.scenes_from_noise(prompts, noise)
        before, after = (
            {
                "p_answer": p_answer,
                "clipped_share": 0.0,
                "diversity": seed_diversity(images, prompts),
                "high_frequency": float(high_frequency_energy(images).mean()),
                "contrast": float(images.std(dim=(2, 3)).mean()),
            }
            for p_answer, images in (
                (0.1, world.render(scenes)),
                (0.9, world.render(world.with_horizon(scenes, line))),
            )
        )
        assert judge_without_truth(before, after).outcome == "learned"
