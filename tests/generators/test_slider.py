"""A LoRA in two parts: one that is constant, and one that a slider counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_comfy_graphs import DRAW, EMPTY, conditionings, generator_for, ksampler, models  # noqa: F401

from dual_process.core.protocols import SLIDER
from dual_process.distillation import Draw, GeneratorError, Sampling

POINT = Draw((0, 1), (3, 4), (1, 1))


def made_the_same(generator):
    """Both parts hold the same, so that the LoRA as a whole counts 1 + t times."""
    parameters = generator.lora_parameters()
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.startswith(SLIDER):
                parameter.copy_(parameters[name.removeprefix(SLIDER)])


def gradients(generator, draw):
    for parameter in generator.lora_parameters().values():
        parameter.grad = None
    with generator.training():
        prediction = generator.estimate(draw, {"prediction"}).prediction
        prediction.square().mean().backward()
    return {name: p.grad for name, p in generator.lora_parameters().items()}


def check_gradients(generator, draw):
    """Of the part that the slider counts they are t times those of the constant part, which holds the same."""
    for value in (-1.0, 0.5):
        found = gradients(generator, replace(draw, sampling=Sampling(slider=value)))
        constant = {name: grad for name, grad in found.items() if not name.startswith(SLIDER)}
        assert len(found) == 2 * len(constant)
        for name, grad in constant.items():
            torch.testing.assert_close(found[f"{SLIDER}{name}"], value * grad, rtol=1e-4, atol=1e-8)
        if value == -1.0:  # the parts cancel each other
            base = replace(draw, base_trajectory=True)
            with generator.training(), torch.no_grad():
                expected = generator.estimate(base, {"base_prediction"}).base_prediction
                torch.testing.assert_close(generator.estimate(replace(base, sampling=Sampling(slider=-1.0)),
                                                              {"prediction"}).prediction, expected)  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_counts_as_often_as_the_slider(schnell, randomize_lora, checkpointing):
    schnell.arrange(False, checkpointing)
    schnell.add_lora(4, 8.0, seed=1, slider=True)
    randomize_lora(schnell)
    made_the_same(schnell)
    check_gradients(schnell, POINT)


def test_without_a_value_the_slider_stands_in_the_middle(schnell, randomize_lora):
    schnell.add_lora(4, 8.0, seed=1, slider=True)
    randomize_lora(schnell)
    middle = schnell.sample([0], [3], sampling=Sampling(slider=0.0))
    schnell.sample([0], [3], sampling=Sampling(slider=1.0))
    assert torch.equal(schnell.sample([0], [3]), middle)
    constant = schnell.lora_state_dict()
    schnell.load_lora_state_dict(constant)
    torch.testing.assert_close(schnell.sample([0], [3]), middle)
    with pytest.raises(GeneratorError, match="has none"):
        schnell.lora_state_dict(slider=True)


@pytest.mark.parametrize("value", [-2.5, 40.0, float("nan")])
def test_a_value_far_outside_is_refused(schnell, value):
    schnell.add_lora(4, 8.0, seed=1, slider=True)
    with pytest.raises(GeneratorError, match="from -1 to 1"):
        schnell.sample([0], [3], sampling=Sampling(slider=value))


def test_both_parts_are_taken_out_and_taken_up_again(schnell, randomize_lora):
    base = schnell.sample([0], [3])
    schnell.add_lora(4, 8.0, seed=1, slider=True)
    randomize_lora(schnell)
    parts = schnell.lora_state_dict(), schnell.lora_state_dict(slider=True)
    sampling = Sampling(slider=0.7)
    picture = schnell.sample([0], [3], sampling=sampling)
    assert torch.equal(schnell.sample([0], [3], lora_scale=0.0, sampling=sampling), base)
    schnell.remove_lora()
    assert torch.equal(schnell.sample([0], [3], sampling=sampling), base)
    schnell.load_lora_state_dict(parts[0], slider=parts[1])
    torch.testing.assert_close(schnell.sample([0], [3], sampling=sampling), picture)


@pytest.mark.parametrize("value", [-1.0, 0.4])
def test_the_plain_pipeline_makes_the_same_pictures_of_the_two_files(
    generator, pipeline, run_pipeline, randomize_lora, value
):
    generator.add_lora(4, 8.0, seed=1, slider=True)
    randomize_lora(generator)
    ours = generator.sample([0, 0], [3, 4], sampling=Sampling(slider=value))
    pipeline.load_lora_weights(generator.lora_state_dict(), adapter_name="constant")
    pipeline.load_lora_weights(generator.lora_state_dict(slider=True), adapter_name="slider")
    pipeline.set_adapters(["constant", "slider"], [1.0, value])
    torch.testing.assert_close(run_pipeline(pipeline, [3, 4]), ours, rtol=1e-4, atol=1e-4)


def comfy_slider(models):  # noqa: F811
    generator = generator_for(*models)
    generator.add_lora(4, 8.0, seed=1, slider=True)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return generator


@pytest.mark.comfyui
def test_in_comfyui_the_gradient_counts_as_often_as_the_slider(models):  # noqa: F811
    generator = comfy_slider(models)
    made_the_same(generator)
    check_gradients(generator, DRAW)


@pytest.mark.comfyui
@pytest.mark.parametrize("format", ["comfyui", "diffusers"])
def test_lora_loaders_make_the_same_pictures_of_the_two_files(models, format):  # noqa: F811
    import comfy.sd

    model, vae = models
    generator = comfy_slider(models)
    ours = generator.sample([0], [42], sampling=Sampling(slider=-0.6))
    for slider, strength in ((False, 1.0), (True, -0.6)):
        model, _ = comfy.sd.load_lora_for_models(
            model, None, generator.lora_state_dict(format, slider=slider), strength, 0.0
        )
    torch.testing.assert_close(ksampler(model, vae), ours, rtol=1e-3, atol=1e-3)
