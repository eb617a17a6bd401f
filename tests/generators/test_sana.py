"""Sana's own sampler is a DPM-Solver: Euler's steps between its noise levels."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from pipelines.sana import SHIFT, build
from tiny_flux import PROMPTS

from dual_process.core.errors import GeneratorError
from dual_process.generators import load_generator
from dual_process.generators.noise import draw_noise

STEPS = 4


def build_with_solver(**changes):
    pipeline = build()
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
    pipeline.scheduler = DPMSolverMultistepScheduler(**{**settings, **changes})
    return pipeline


def load(pipeline):
    return load_generator(pipeline, PROMPTS, "cpu", height=64, width=96, num_inference_steps=STEPS)


def test_pictures_are_the_pipelines_with_eulers_steps_at_the_solvers_noise_levels():
    generator = load(build_with_solver())
    pipeline = build()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    levels = torch.linspace(1 - 1 / 1000, 0, STEPS + 1)[:-1].tolist()  # before the shift, as the solver spaces them
    wanted = pipeline(
        PROMPTS[1],
        latents=draw_noise([4], 32, 2, 3),
        sigmas=levels,
        num_inference_steps=STEPS,
        height=64,
        width=96,
        use_resolution_binning=False,
        output_type="pt",
    ).images
    torch.testing.assert_close(generator.sample([1], [4]), wanted, atol=2e-5, rtol=0)


def test_a_solver_without_a_flows_noise_levels_is_refused():
    with pytest.raises(GeneratorError, match="DPMSolverMultistepScheduler"):
        load(build_with_solver(use_flow_sigmas=False))


def test_a_lora_leaves_out_the_depthwise_convolutions_and_says_so(caplog):
    generator = load(build())
    with caplog.at_level(logging.INFO):
        generator.add_lora(2, 4.0, seed=0, targets="all linear")
    assert "leaves out 2 convolutions" in caplog.text
    layers = {
        name.split(".", 2)[2] for name in generator.lora_parameters() if name.startswith("transformer_blocks.0.f")
    }
    assert layers == {f"ff.{layer}.lora_{part}" for layer in ("conv_inverted", "conv_point") for part in "AB"}
    with pytest.raises(GeneratorError, match="targets that choose some layer"):
        generator.add_lora(2, 4.0, seed=0, targets=r".*conv_depth")
