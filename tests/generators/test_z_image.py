"""Z-Image: prompts of different lengths in a batch, and guidance by the pipeline's own rule."""

from __future__ import annotations

import pytest
import torch
from pipelines.z_image import TINIES

from dual_process.core.protocols import Sampling
from dual_process.generators import load_generator
from dual_process.generators.noise import draw_noise

LONG = "a red house with blue sky " * 7  # its tokens fill more than one multiple of 32
PROMPTS = ["a tree", LONG]


@pytest.fixture(scope="module")
def pipeline():
    return TINIES[0].build()


@pytest.fixture
def generator(pipeline):
    return load_generator(pipeline, PROMPTS, height=64, width=96, num_inference_steps=2)


def test_prompts_of_different_lengths_share_a_batch(generator):
    together = generator.sample([0, 1], [4, 5])
    apart = torch.cat([generator.sample([0], [4]), generator.sample([1], [5])])
    assert (together[0] - generator.sample([1], [4])[0]).abs().max() > 1e-3
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_guidance_is_the_pipelines(pipeline, generator):
    guided = generator.sample([0, 1], [4, 5], sampling=Sampling(guidance=3.0))
    assert (guided - generator.sample([0, 1], [4, 5])).abs().max() > 1e-3
    options = {"height": 64, "width": 96, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    for row, prompt in enumerate(PROMPTS):
        wanted = pipeline(prompt, latents=draw_noise([4 + row], 16, 8, 12), **options).images
        torch.testing.assert_close(guided[row : row + 1], wanted, atol=2e-5, rtol=0)
