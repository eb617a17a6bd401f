"""Compiled blocks: the numbers of eager ones, and eager ones where compiling fails.

By dynamo and autograd's own tracing, without the minutes that a C++ compiler takes for each kind of block.
"""

from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch
from tiny_flux import PROMPTS

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw
from dual_process.generators import load_generator
from dual_process.generators.diffusers import compiling

DRAW = Draw((0, 1), (4, 5), (1, 2))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch):
    """Stands in for inductor: counts graphs, and fails if it is told to."""
    compile_plainly = torch.compile
    by_autograd = torch._dynamo.lookup_backend("aot_eager")
    seen = {"graphs": 0, "error": None}

    def count(graph, inputs):
        seen["graphs"] += 1
        if seen["error"] is not None:
            raise seen["error"]
        return by_autograd(graph, inputs)

    monkeypatch.setattr(compiling.torch, "compile", partial(compile_plainly, backend=count))
    return seen


def make(name, **options):
    tiny = importlib.import_module(f"pipelines.{name}").TINIES[0]
    size = {"height": tiny.size, "width": tiny.size, "num_inference_steps": 3}
    generator = load_generator(tiny.build(), PROMPTS, "cpu", **size, **options)
    generator.add_lora(2, 4.0, seed=0, targets=tiny.targets)  # after compiling
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in generator.lora_parameters().items():
            if key.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * tiny.lora)
    return generator


def learn(generator):
    with generator.training():
        estimate = generator.estimate(DRAW, {"image", "prediction", "base_image"})
        (estimate.prediction * torch.randn(estimate.prediction.shape, generator=torch.Generator().manual_seed(9))).mean().backward()  # fmt: skip  # noqa: E501
    pictures = generator.sample([0], [3])
    values = [estimate.image.detach(), estimate.prediction.detach(), estimate.base_image, pictures]
    return values, [p.grad for p in generator.lora_parameters().values() if p.grad is not None]


def assert_same(ours, theirs):
    for found, wanted in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert float((found - wanted).norm()) <= 1e-4 * float(wanted.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["flux", "stable_diffusion", "z_image"])
def test_the_numbers_are_those_of_eager_blocks(name, checkpointing, backend, caplog):
    eager = learn(make(name, gradient_checkpointing=checkpointing))
    assert backend["graphs"] == 0
    assert_same(learn(make(name, gradient_checkpointing=checkpointing, compile=True)), eager)
    assert backend["graphs"] > 0
    assert "torch.compile" not in caplog.text


def test_blocks_of_one_kind_are_compiled_once_and_steps_no_more(backend):
    generator = make("flux", compile=True)
    learn(generator)
    graphs = backend["graphs"]
    learn(generator)
    assert backend["graphs"] == graphs


@pytest.mark.parametrize("error", [RuntimeError("no C++ compiler"), torch._dynamo.exc.Unsupported("this")])
def test_where_it_fails_the_network_runs_without(backend, caplog, error):
    eager = learn(make("flux"))
    backend["error"] = error
    generator = make("flux", compile=True)
    found = learn(generator)
    assert all(map(torch.equal, [*found[0], *found[1]], [*eager[0], *eager[1]]))
    (record,) = [record for record in caplog.records if "torch.compile failed" in record.getMessage()]
    assert str(error) in record.getMessage()
    graphs = backend["graphs"]
    learn(generator)
    assert backend["graphs"] == graphs  # not tried again


def test_an_error_of_the_network_itself_is_raised(backend):
    generator = make("flux", compile=True)
    generator.network.transformer_blocks[0].attn.to_q.base_layer.weight.data = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="shape"), generator.training():
        generator.estimate(DRAW, {"prediction"})


def test_a_network_that_names_no_blocks_runs_as_it_is(backend, caplog):
    assert_same(learn(make("sana", compile=True)), learn(make("sana")))
    assert backend["graphs"] == 0
    assert "names no blocks to compile" in caplog.text


def test_not_while_blocks_are_streamed():
    with pytest.raises(GeneratorError, match="compile or offload='blocks'"):
        make("flux", compile=True, offload="blocks")
