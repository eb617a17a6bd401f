"""A LoRA keeps its layers' own inputs for the backward pass, not float32 copies, and the numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from comfy_models import SIZE, conditionings, diffusers_generator, write_files
from torch.nn import functional as F

from dual_process.core.protocols import Draw
from dual_process.generators.diffusers import peft_lora
from dual_process.generators.widening import widening_linear

DRAW = Draw((0, 1), (5, 6), (0, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_numbers_are_those_of_a_cast(dtype):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=random).to(dtype).requires_grad_()
    weight = torch.randn(3, 8, generator=random).requires_grad_()
    outputs = widening_linear(x, weight), F.linear(x.float(), weight)
    assert torch.equal(*outputs)
    grad = torch.randn(2, 5, 3, generator=random)
    ours, plain = (torch.autograd.grad(out, (x, weight), grad) for out in outputs)
    assert all(torch.equal(one, other) for one, other in zip(ours, plain, strict=True))
    assert ours[0].dtype == dtype


def gradients_and_bytes(generator):
    """The LoRA's gradients, and how much a forward pass keeps for them beside weights."""
    generator.add_lora(4, 8.0, seed=1)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with generator.training():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = generator.estimate(DRAW, ["prediction"]).prediction
        (prediction * torch.randn(prediction.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    gradients = {name: p.grad.clone() for name, p in generator.lora_parameters().items()}
    return gradients, sum(kept.values())


def assert_the_same_for_less(lean, plain):
    assert all(torch.equal(gradient, plain[0][name]) for name, gradient in lean[0].items())
    assert any(gradient.abs().sum() > 0 for gradient in lean[0].values())
    assert lean[1] < plain[1]


def test_in_diffusers(monkeypatch):
    lean = gradients_and_bytes(diffusers_generator("schnell", dtype=torch.bfloat16))
    monkeypatch.setattr(peft_lora, "_keep_narrow_inputs", lambda layer, adapter: None)
    assert_the_same_for_less(lean, gradients_and_bytes(diffusers_generator("schnell", dtype=torch.bfloat16)))


@pytest.mark.comfyui
def test_in_comfyui(comfy, monkeypatch):
    import dual_process.generators.comfy.lora as comfy_lora
    import nodes
    from dual_process.generators.comfy.generator import ComfyGenerator

    unet, vae = write_files(comfy / "models", "schnell", torch.bfloat16)
    with torch.inference_mode():
        (model,) = nodes.UNETLoader().load_unet(unet.name, "default")
        (vae,) = nodes.VAELoader().load_vae(vae.name)
        model.set_model_compute_dtype(torch.bfloat16)  # as on a GPU
    latent = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}
    lean = gradients_and_bytes(ComfyGenerator(model, vae, conditionings(), latent=latent))
    monkeypatch.setattr(comfy_lora, "widening_linear", lambda x, weight: F.linear(x.to(weight.dtype), weight))
    assert_the_same_for_less(lean, gradients_and_bytes(ComfyGenerator(model, vae, conditionings(), latent=latent)))
