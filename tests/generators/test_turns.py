"""Network and decoder on one device in turns, each away while the other works, forward and backward."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import pytest
import torch
from tiny_flux import PROMPTS

from dual_process.core import residency
from dual_process.core.protocols import Draw
from dual_process.generators import load_generator

NAMES = ("flux", "stable_diffusion", "z_image")
DRAW = Draw((0, 1), (4, 5), (1, 2))


class PretendedDevice:
    """The generator's weights are NaN but while they visit it."""

    def __init__(self, generator, monkeypatch):
        self.events = []
        self.network = generator.network
        parts = [p for module in (generator.network, generator.vae) for p in module.parameters()]
        self.home = {id(p): (p, p.data) for p in parts if not p.requires_grad}
        monkeypatch.setattr(residency, "visiting", self.visiting)

    def leave(self):
        for parameter, data in self.home.values():
            parameter.data = torch.full_like(data, torch.nan)

    @contextmanager
    def visiting(self, modules, device):
        self.events.append("network" if self.network in modules else "decoder")
        mine = [self.home[id(p)] for module in modules for p in module.parameters() if id(p) in self.home]
        for parameter, data in mine:
            parameter.data = data
        yield
        for parameter, data in mine:
            parameter.data = torch.full_like(data, torch.nan)


@pytest.fixture(params=NAMES)
def make(request):
    tiny = importlib.import_module(f"pipelines.{request.param}").TINIES[0]

    def build(checkpointing):
        options = {"height": tiny.size, "width": tiny.size, "num_inference_steps": 3}
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
    device = PretendedDevice(generator, monkeypatch)
    device.leave()
    with generator.training(in_turns=True):
        backward(generator.estimate(DRAW, {"image", "prediction", "base_image"}))
    assert device.events == ["network", "decoder", "network"]
    assert all(parameter.isnan().all() for parameter, _ in device.home.values())
    ours, theirs = gradients(generator), gradients(resident)
    assert theirs
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


def test_a_graph_waits_while_others_have_their_turn(make, monkeypatch):
    resident, generator = make(True), make(True)
    assert generator.keeps_graph
    with resident.training():
        backward(resident.estimate(DRAW))
    device = PretendedDevice(generator, monkeypatch)
    device.leave()
    with generator.training(in_turns=True):
        estimate = generator.estimate(DRAW)
    assert all(parameter.isnan().all() for parameter, _ in device.home.values())
    with generator.training(in_turns=True):
        backward(estimate)
    assert device.events == ["network", "decoder", "decoder", "network"]
    ours = gradients(generator)
    assert all(torch.equal(ours[name], gradient) for name, gradient in gradients(resident).items())


def test_pictures_amid_training(make, monkeypatch):
    generator = make(False)
    wanted = generator.sample([0], [4])
    device = PretendedDevice(generator, monkeypatch)
    device.leave()
    with generator.training(in_turns=True):
        assert torch.equal(generator.sample([0], [4]), wanted)
        assert generator.estimate(DRAW).image.isfinite().all()
