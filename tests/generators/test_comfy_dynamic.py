"""MODELs and VAEs that ComfyUI streams (dynamic VRAM): their own weights are trained through, without a second copy."""

from __future__ import annotations

import importlib

import pytest
import torch
from dynamic import dynamic_vram, load_as_comfyui_does, memory, places
from pretended import PretendedDevice

from dual_process.core.streaming import blocks_of
from dual_process.distillation import Draw

pytestmark = pytest.mark.comfyui
DRAW = Draw((0,), (4,), (1,))
NAMES = ("flux", "stable_diffusion", "z_image")


@pytest.fixture(params=NAMES)
def tiny(request, comfy):
    return importlib.import_module(f"comfy_tinies.{request.param}").TINIES[0]


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request):
    """Of the model; its file is in float32."""
    return request.param


def make(tiny, model, vae, **changes):
    from dual_process.generators.comfy.generator import ComfyGenerator

    generator = ComfyGenerator(
        model,
        vae,
        [tiny.conditioning(0)],
        latent={"samples": torch.zeros(tiny.latent)},
        **{**tiny.options, "steps": 3, "negative": tiny.conditioning(1), **changes},
    )
    generator.add_lora(2, 4.0, seed=0)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return generator


def learn(generator, in_turns=False):
    weights = torch.randn(3, generator=torch.Generator().manual_seed(9))[:, None, None]
    with generator.training(in_turns):
        assert not places(generator.model.model)  # ComfyUI's layers would take the weights from there
        (generator.estimate(DRAW).image * weights).mean().backward()
    return {name: p.grad.clone() for name, p in generator.lora_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("offload", [False, "blocks"])
def test_gradients_are_those_of_a_model_that_is_not_streamed(tiny, dtype, offload, monkeypatch, caplog):
    resident = make(tiny, *tiny.build(dtype), gradient_checkpointing=True)
    wanted, pictures = (learn(resident), learn(resident, in_turns=True)), resident.sample([0], [4])
    with dynamic_vram(monkeypatch):
        found, ours = trained_through_a_streamed_one(tiny, dtype, offload, monkeypatch)
    assert "second copy" not in caplog.text
    torch.testing.assert_close(ours, pictures, rtol=1e-5, atol=1e-5)
    for theirs, gradients in zip(wanted, found, strict=True):
        size = max(float(gradient.abs().max()) for gradient in theirs.values())
        assert size > 0
        for name, gradient in theirs.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * size, msg=name)


def trained_through_a_streamed_one(tiny, dtype, offload, monkeypatch):
    """Gradients, at once and in turns, and pictures; MODEL and VAE have been loaded, and are as before afterwards."""
    import comfy.model_management as management

    model, vae = tiny.build(dtype)
    assert model.is_dynamic()
    assert vae.patcher.is_dynamic()
    load_as_comfyui_does(model, vae.patcher)
    with torch.inference_mode():
        management.unload_all_models()
    before, streamed = memory(model.model), len(places(model.model))
    assert torch.float32 in {p.dtype for p in model.model.parameters()}
    load_as_comfyui_does(model, vae.patcher)
    assert len(model.backup) > 0  # small weights, of which ComfyUI has put copies on the device
    generator = make(tiny, model, vae, offload=offload, gradient_checkpointing=True)
    assert generator.model.model is model.model
    with torch.inference_mode(False), generator._visits.in_force():
        whole, decoder = generator.model.model, generator.vae.first_stage_model
        blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(whole))}
        device = PretendedDevice({"network": [whole], "decoder": [decoder], **blocks}, monkeypatch)
    found = learn(generator), learn(generator, in_turns=True)
    pictures = generator.sample([0], [4])
    assert device.is_empty()
    assert memory(model.model) == before
    assert len(places(model.model)) == streamed > 0
    return found, pictures
