"""Network and decoder on one device in turns, each away while the other works, forward and backward."""

from __future__ import annotations

import importlib

import pytest
import torch
from pretended import PretendedDevice
from tiny_flux import PROMPTS

from dual_process.core.protocols import Draw
from dual_process.core.streaming import blocks_of
from dual_process.generators import load_generator
from dual_process.generators.diffusers.denoising import decoding_parts

NAMES = ("flux", "stable_diffusion", "z_image", "qwen_image")
DRAW = Draw((0, 1), (4, 5), (1, 2))


@pytest.fixture(params=NAMES)
def make(request):
    tiny = importlib.import_module(f"pipelines.{request.param}").TINIES[0]

    def build(checkpointing, offload=False):
        options = {"height": tiny.size, "width": tiny.size, "num_inference_steps": 3, "offload": offload}
        generator = load_generator(
            tiny.build(), PROMPTS, "cpu", torch.float32, gradient_checkpointing=checkpointing, **options
        )
        generator.add_lora(2, 4.0, seed=0, targets=tiny.targets)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in generator.lora_parameters().items():
                if name.endswith("lora_B"):
                    parameter.copy_(torch.randn(parameter.shape, generator=random) * tiny.lora)
        return generator

    return build


def pretend(generator, monkeypatch):
    blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(generator.network))}
    parts = {"network": [generator.network], "decoder": decoding_parts(generator.vae)}
    return PretendedDevice({**parts, **blocks}, monkeypatch, generator.lora_parameters().values())


def backward(estimate):
    weights = torch.randn(estimate.image.shape, generator=torch.Generator().manual_seed(9))
    ((estimate.image * weights).mean() + estimate.prediction.square().mean()).backward()


def gradients(generator):
    return {name: p.grad.clone() for name, p in generator.lora_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_are_those_of_both_resident(make, checkpointing, monkeypatch):
    resident, generator = make(checkpointing), make(checkpointing)
    with resident.training():
        backward(resident.estimate(DRAW, {"image", "prediction", "base_image"}))
    device = pretend(generator, monkeypatch)
    with generator.training(in_turns=True):
        backward(generator.estimate(DRAW, {"image", "prediction", "base_image"}))
    assert device.parts() == ["network", "decoder", "network"]
    assert device.is_empty()
    ours, theirs = gradients(generator), gradients(resident)
    assert theirs
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


def test_a_graph_waits_while_others_have_their_turn(make, monkeypatch):
    resident, generator = make(True), make(True)
    assert generator.keeps_graph
    with resident.training():
        backward(resident.estimate(DRAW))
    device = pretend(generator, monkeypatch)
    with generator.training(in_turns=True):
        estimate = generator.estimate(DRAW)
    assert device.is_empty()
    with generator.training(in_turns=True):
        backward(estimate)
    assert device.parts() == ["network", "decoder", "network"]
    ours = gradients(generator)
    assert all(torch.equal(ours[name], gradient) for name, gradient in gradients(resident).items())


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_come_one_by_one(make, checkpointing, in_turns, monkeypatch):
    resident, generator = make(checkpointing), make(checkpointing, "blocks")
    with resident.training():
        backward(resident.estimate(DRAW))
        pictures = resident.sample([0], [4])
    device = pretend(generator, monkeypatch)
    with generator.training(in_turns):
        backward(generator.estimate(DRAW))
        ours = gradients(generator)
        assert torch.equal(generator.sample([0], [4]), pictures)
    assert device.is_empty()
    for name, gradient in gradients(resident).items():  # a UNet's skips are summed in another order
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()), msg=name)
    blocks = [name for name in device.came() if name.startswith("block")]
    assert len({*blocks}) == len(blocks_of(generator.network)) > 1
    assert device.most_blocks == 2  # the one that works, and the next


def test_pictures_amid_training(make, monkeypatch):
    generator = make(False)
    wanted = generator.sample([0], [4])
    pretend(generator, monkeypatch)
    with generator.training(in_turns=True):
        assert torch.equal(generator.sample([0], [4]), wanted)
        assert generator.estimate(DRAW).image.isfinite().all()


def test_a_lora_that_is_attached_anew_lies_where_the_network_computes(make):
    """Not where its weights wait."""
    generator = make(True, offload="blocks")
    generator.device = torch.device("meta")
    generator.add_lora(2, 4.0, seed=0, slider=True)
    assert {p.device.type for p in generator.lora_parameters().values()} == {"meta"}
    assert generator.network.device.type == "cpu"
