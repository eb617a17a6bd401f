"""SDXL's other schedulers, its empty prompt, and its VAE in half precision."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from pipelines.stable_diffusion_xl import TINIES
from tiny_flux import PROMPTS

from dual_process.generators import load_generator
from dual_process.generators.noise import draw_noise

STEPS = 3
SIZE = {"height": 64, "width": 64, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def pipeline():
    return TINIES[0].build()


def load(pipeline):
    return load_generator(pipeline, PROMPTS, "cpu", **SIZE)


def run(pipeline, **options):
    return pipeline(PROMPTS[0], latents=draw_noise([4], 4, 8, 8), output_type="pt", **SIZE, **options).images


@pytest.mark.parametrize(
    ("kind", "spacing"),
    [(EulerDiscreteScheduler, "trailing"), (EulerDiscreteScheduler, "linspace"), (DDIMScheduler, "leading")],
)
def test_pictures_are_the_pipelines_with_other_schedulers(pipeline, monkeypatch, kind, spacing):
    scheduler = kind.from_config({**pipeline.scheduler.config, "timestep_spacing": spacing, "clip_sample": False})
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    torch.testing.assert_close(load(pipeline).sample([0], [4]), run(pipeline), atol=2e-5, rtol=0)


@pytest.mark.parametrize("zeros", [True, False])
def test_the_empty_prompt_is_the_pipelines(pipeline, monkeypatch, zeros):
    config = {**pipeline.config, "force_zeros_for_empty_prompt": zeros}
    monkeypatch.setattr(pipeline, "_internal_dict", type(pipeline.config)(config))
    generator = load(pipeline)
    _, sequence, _, pooled = pipeline.encode_prompt(PROMPTS[0])
    assert bool(sequence.any()) is not zeros
    torch.testing.assert_close(generator._prompts.empty, {"sequence": sequence, "pooled": pooled})
    torch.testing.assert_close(generator.sample([0], [4]), run(pipeline), atol=2e-5, rtol=0)


def test_the_vae_is_in_float32_where_half_precision_overflows(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for source in (pipeline, str(tmp_path)):
        generator = load_generator(source, PROMPTS, "cpu", torch.float16, **SIZE)
        assert (generator.dtype, generator.vae.dtype) == (torch.float16, torch.float32)
    assert pipeline.vae.dtype == torch.float32
