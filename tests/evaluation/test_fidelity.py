"""Measures of what a person sees, on rendered scenes whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab

from dual_process.demo import world
from dual_process.demo.fidelity import true_pictures
from dual_process.evaluation.fidelity import Truth, against_base, against_truth
from dual_process.evaluation.measures import (
    high_frequency_energy,
    object_presence,
    outline_energy,
    region_color_error,
    row_unevenness,
    seed_diversity,
)
from dual_process.generators.noise import draw_noise

PROMPTS = (
    "a day sky over the sea with a tree",
    "the sand under a sunset sky with a ball",
    "a night sky over the grass",
)


def pairs_of(prompts=PROMPTS, each=3):
    """Prompts in turn, `each` times, and the noise of each."""
    return prompts * each, draw_noise(range(len(prompts) * each), world.LATENT_CHANNELS, 14, 14)


@pytest.fixture(scope="module")
def scenes():
    return world.scenes_from_noise(*pairs_of())


@pytest.fixture(scope="module")
def truth(scenes):
    return true_pictures(scenes)


def test_the_true_pictures_lack_nothing(truth):
    assert against_truth(truth.images, truth, pairs_of()[0]) == {
        "object_presence": pytest.approx(1),
        "sky_color_error": pytest.approx(0, abs=1e-6),
        "ground_color_error": pytest.approx(0, abs=1e-6),
        "unevenness": pytest.approx(0, abs=1e-6),
        "sharpness": pytest.approx(1),
        "diversity": pytest.approx(1),
    }


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_object_that_fades(truth, share):
    measures = against_truth(truth.bare.lerp(truth.images, share), truth, pairs_of()[0])
    assert measures["object_presence"] == pytest.approx(share)
    assert measures["sky_color_error"] < 0.01  # its pixels are left out
    assert measures["ground_color_error"] < 0.01


def test_too_much_contrast_does_not_make_up_for_a_lost_object(truth):
    images = truth.images.clone()
    images[0] = truth.bare[0] + 2 * (truth.images[0] - truth.bare[0])
    images[1] = truth.bare[1]
    values = object_presence(images, truth.images, truth.bare)
    assert values[:2].tolist() == [1.0, 0.0]
    assert values[2::3].isnan().all()  # the third prompt names no object
    assert against_truth(images, truth, pairs_of()[0])["object_presence"] == pytest.approx(5 / 6)


def test_an_object_elsewhere_is_not_there(scenes, truth):
    moved = world.render(replace(scenes, object_x=1 - scenes.object_x))
    assert object_presence(moved, truth.images, truth.bare)[0] < 0.1  # the tree; the ball stands in the middle


def test_the_parts_of_a_picture(scenes, truth):
    assert truth.object.any(dim=(1, 2)).tolist() == [True, True, False] * 3
    rows = (scenes.horizon * 112 - 0.5).ceil()  # rows whose centre is above the horizon
    assert truth.sky.sum(dim=1)[:, 0].tolist() == rows.tolist()


def test_colour_error_is_ciede2000_of_the_means():
    one, two, other = (0.2, 0.4, 0.6), (0.6, 0.5, 0.1), (0.9, 0.1, 0.9)
    images = torch.tensor([one, two])[:, :, None, None].expand(-1, -1, 4, 4).clone()
    images[0, :, :2, :2] = torch.tensor([0.1, 0.1, 0.1])[:, None, None]
    images[0, :, :2, 2:] = torch.tensor([0.3, 0.7, 1.0])[:, None, None]
    references = torch.tensor([two, one])[:, :, None, None].expand(-1, -1, 4, 4).clone()
    references[:, :, 3] = torch.tensor(other)[None, :, None]  # outside of the region
    region = torch.ones(2, 4, 4, dtype=torch.bool)
    region[:, 3] = False
    # Twelve pixels: four of one, four of (.1, .1, .1), four of (.3, .7, 1): their mean is (.2, .4, .5666 …).
    wanted = [
        deltaE_ciede2000(rgb2lab([[a]]), rgb2lab([[b]])).item() for a, b in (((0.2, 0.4, 1.7 / 3), two), (two, one))
    ]
    assert region_color_error(images, references, region).tolist() == pytest.approx(wanted, abs=1e-4)


def test_sky_and_ground_are_told_apart(scenes, truth):
    colors = scenes.colors.clone()
    colors[:, :2] = colors[:, :2] * 0.8
    measures = against_truth(world.render(replace(scenes, colors=colors)), truth, pairs_of()[0])
    assert measures["sky_color_error"] > 3
    assert measures["ground_color_error"] < 0.5


def test_high_frequencies_of_a_chessboard():
    grid = torch.arange(8)
    board = 0.5 + 0.1 * (-1.0) ** (grid[:, None] + grid[None, :])
    # Every pixel's four neighbours are 0.2 away: the Laplacian is ±0.8 everywhere. A slope has none.
    slope = (grid / 8.0).expand(8, 8)
    energy = high_frequency_energy(torch.stack([board, slope])[:, None].expand(-1, 3, -1, -1))
    assert energy.tolist() == pytest.approx([0.64, 0.0], abs=1e-5)


def test_half_the_contrast_is_a_quarter_of_the_energy(truth):
    faded = 0.5 + 0.5 * (truth.images - 0.5)
    measures = against_truth(faded, truth, pairs_of()[0])
    assert measures["sharpness"] == pytest.approx(0.25, rel=1e-4)
    assert measures["diversity"] == pytest.approx(0.5, rel=1e-4)


def test_blur_and_noise(truth):
    kernel = torch.full((3, 1, 3, 3), 1 / 9)
    blurred = torch.nn.functional.conv2d(truth.images, kernel, padding="same", groups=3)
    noisy = truth.images + 0.05 * torch.randn(truth.images.shape, generator=torch.Generator().manual_seed(0))
    inner = Truth(*(t[..., 2:-2, 2:-2] for t in (truth.images, truth.bare, truth.sky)))
    assert against_truth(blurred[..., 2:-2, 2:-2], inner, pairs_of()[0])["sharpness"] < 0.4
    assert against_truth(noisy, truth, pairs_of()[0])["sharpness"] > 3


def test_unevenness_by_hand():
    left, right = (0.2, 0.4, 0.6), (0.3, 0.4, 0.6)
    images = torch.zeros(1, 3, 4, 8)
    images[..., :4], images[..., 4:] = torch.tensor(left)[:, None, None], torch.tensor(right)[:, None, None]
    images[:, :, 0] = torch.rand(3, 8)  # outside of the region
    region = torch.ones(1, 4, 8, dtype=torch.bool)
    region[:, 0] = False
    half = np.linalg.norm(rgb2lab([[left]]) - rgb2lab([[right]])) / 2
    assert row_unevenness(images, region).item() == pytest.approx(half, rel=1e-4)
    assert row_unevenness(images, ~region)[0] > 5
    assert row_unevenness(images, region & False).isnan().all()


def test_blotches_are_seen_and_objects_are_not(truth):
    blotched = truth.images.clone()
    blotched[..., 20:60] = (blotched[..., 20:60] + 0.15).clamp(max=1)
    assert against_truth(blotched, truth, pairs_of()[0])["unevenness"] > 4
    assert against_base(blotched, truth.images, truth, pairs_of()[0])["unevenness"] > 4
    assert against_truth(truth.bare, truth, pairs_of()[0])["unevenness"] == pytest.approx(0, abs=1e-6)


def test_diversity_by_hand():
    images = torch.tensor([0.0, 0.5, 0.3, 0.6, 0.9])[:, None, None, None].expand(-1, 3, 4, 4)
    # a: 0, .3 and .9, which are .3, .9 and .6 apart; b: .5 and .6.
    assert seed_diversity(images, ("a", "b", "a", "b", "a")) == pytest.approx((0.3 + 0.9 + 0.6 + 0.1) / 4)
    assert np.isnan(seed_diversity(images, tuple("abcde")))


def test_one_picture_for_all_seeds(truth):
    same = truth.images[:3].repeat(3, 1, 1, 1)
    assert against_truth(same, truth, pairs_of()[0])["diversity"] == 0


def test_outline_energy_of_an_edge():
    image = torch.zeros(1, 3, 6, 8)
    image[..., 3:] = 0.5
    everywhere = torch.ones(1, 6, 8, dtype=torch.bool)
    right = everywhere.clone()
    right[..., :3] = False
    assert outline_energy(image, everywhere).item() == pytest.approx(6 * 3 * 0.25)
    assert outline_energy(image, right).item() == 0
    assert outline_energy(image.mT, everywhere.mT).item() == pytest.approx(6 * 3 * 0.25)


def test_outlines_as_a_share_of_the_base_pictures(truth):
    prompts = pairs_of()[0]
    base = 0.5 + 0.8 * (truth.images - 0.5)
    assert against_base(base, base, truth, prompts) == pytest.approx(
        {"object_presence": 1, "unevenness": 0, "sharpness": 1, "diversity": 1}, abs=1e-4
    )
    faded = 0.5 + 0.5 * (base - 0.5)
    assert against_base(faded, base, truth, prompts) == pytest.approx(
        {"object_presence": 0.25, "unevenness": 0, "sharpness": 0.25, "diversity": 0.5}, rel=1e-4, abs=1e-4
    )
    # Where no horizon passes behind the object, almost nothing is left without it.
    assert against_base(truth.bare, truth.images, truth, prompts)["object_presence"] < 0.15


def test_pictures_that_are_no_numbers_keep_nothing(truth):
    measures = against_truth(truth.images * torch.nan, truth, pairs_of()[0])
    assert measures.pop("object_presence") == 0
    assert len(measures) == 5
    assert all(np.isnan(value) for value in measures.values())
    measures = against_base(truth.images * torch.nan, truth.images, truth, pairs_of()[0])
    assert measures.pop("object_presence") == 0
    assert all(np.isnan(value) for value in measures.values())


def test_what_the_pairs_cannot_tell_is_left_out():
    prompts, noise = pairs_of(PROMPTS[2:], each=1)
    truth = true_pictures(world.scenes_from_noise(prompts, noise))
    colors = {"sky_color_error", "ground_color_error"}
    assert set(against_truth(truth.images, truth, prompts)) == {*colors, "unevenness", "sharpness"}
    assert set(against_base(truth.images, truth.images, truth, prompts)) == {"unevenness", "sharpness"}


def test_true_pictures_of_one_shape(truth):
    with pytest.raises(ValueError, match="one shape"):
        Truth(truth.images, truth.bare, truth.sky[:, 1:])
