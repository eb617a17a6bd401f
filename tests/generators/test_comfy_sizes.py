"""What ComfyGenerator says that a step takes, against what the step's graph keeps."""

from __future__ import annotations

import importlib

import pytest
import torch

from dual_process.core.protocols import Draw

pytestmark = pytest.mark.comfyui
TRANSFORMERS = ("flux", "flux_2", "chroma", "qwen_image", "z_image", "stable_diffusion_3")
UNETS = ("stable_diffusion", "stable_diffusion_xl")


def build(name):
    from dual_process.generators.comfy.generator import ComfyGenerator

    tiny = importlib.import_module(f"comfy_tinies.{name}").TINIES[0]
    model, vae = tiny.build(torch.float32)
    options = {"steps": 3, **tiny.options}
    if options.get("cfg", 1) != 1:
        options["negative"] = tiny.conditioning(1)
    return ComfyGenerator(model, vae, [tiny.conditioning(0)], latent={"samples": torch.zeros(tiny.latent)}, **options)


def kept(generator):
    """Bytes that the graph of a prediction keeps beside the weights."""
    weights = {
        p.untyped_storage().data_ptr()
        for m in (generator.model.model, generator.vae.first_stage_model)
        for p in m.parameters()
    }
    seen = {}

    def note(tensor):
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with generator.training(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        estimate = generator.estimate(Draw((0,), (4,), (1,)), {"prediction"})
        assert estimate.get("prediction").requires_grad
        return sum(t.untyped_storage().nbytes() for pointer, t in seen.items() if pointer not in weights)


@pytest.mark.parametrize("name", [*TRANSFORMERS, *UNETS])
def test_weights_and_the_lora_are_counted(comfy, name):
    generator = build(name)
    generator.add_lora(2, 4.0, seed=0)
    network, decoder, lora = generator.sizes(1, rank=2)
    unet = generator.model.model.diffusion_model
    assert lora == sum(p.nbytes for p in generator.lora_parameters().values())
    assert network.weights == sum(t.nbytes for t in (*unet.parameters(), *unet.buffers()))
    assert 0 < network.ring <= network.weights
    assert network.inputs < network.kept
    assert network.flops > 0
    assert decoder.weights > 0
    assert decoder.kept > 0


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_graph_of_a_transformer_keeps_about_what_is_said(comfy, name):
    generator = build(name)
    generator.add_lora(2, 4.0, seed=0)
    network, _, _ = generator.sizes(1, rank=2)
    assert 0.25 < network.kept / kept(generator) < 2
