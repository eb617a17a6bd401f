"""A VAE of its own for the gradient in ComfyUI: images are its own, finished pictures stay those of the VAE."""

from __future__ import annotations

import copy

import pytest
import torch
from comfy_models import SIZE, conditionings, vae_file_tensors, write_files
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}
DRAW = Draw((0, 1), (5, 6), (2, 0))


def other_decoder(channels=16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12)
        return AutoencoderTiny(latent_channels=channels, scaling_factor=1.0, shift_factor=0.0).eval()


def load_other(channels=16):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.VAE(sd={name: t.clone() for name, t in vae_file_tensors(other_decoder(channels)).items()})


@pytest.fixture(scope="module")
def models(comfy):
    unet, _ = write_files(comfy / "models", "schnell")
    import nodes

    with torch.inference_mode():
        return nodes.UNETLoader().load_unet(unet.name, "default")[0], nodes.VAELoader().load_vae(
            "tiny-vae.safetensors"
        )[0]


@pytest.fixture
def make(models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    def build(gradient_vae=None, **changes):
        generator = ComfyGenerator(*models, conditionings(), latent=EMPTY, gradient_vae=gradient_vae, **changes)
        generator.add_lora(4, 8.0, seed=1)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in generator.lora_parameters().items():
                if name.endswith("lora_B"):
                    parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
        return generator

    return build


def learn(generator, image_of=lambda image: image):
    """The images, and the gradient of a fixed functional of them."""
    with generator.training():
        estimate = generator.estimate(DRAW, {"image", "base_image"})
        images = [image_of(image) for image in (estimate.image, estimate.base_image)]
        weights = torch.randn(images[0].shape, generator=torch.Generator().manual_seed(9))
        (images[0] * weights).mean().backward()
    return [image.detach() for image in images], [p.grad for p in generator.lora_parameters().values()]


def test_images_and_gradients_are_those_of_a_naive_decode(make):
    images, gradients = learn(make(load_other()))
    naive, decoder = make(), other_decoder()
    naive._decode_for_gradient = lambda latents: latents
    wanted, wanted_gradients = learn(naive, lambda latents: (decoder.decode(latents).sample + 1) / 2)
    for image, theirs in zip(images, wanted, strict=True):
        torch.testing.assert_close(image, theirs, atol=1e-5, rtol=1e-4)
    for gradient, theirs in zip(gradients, wanted_gradients, strict=True):
        assert float((gradient - theirs).norm()) <= 1e-3 * float(theirs.norm())
    assert any(theirs.abs().max() > 0 for theirs in wanted_gradients)
    assert float((images[0] - learn(make())[0][0]).abs().max()) > 1e-2


def test_pictures_are_those_of_the_vae(make):
    generator, plain = make(load_other()), make()
    wanted = plain.sample([0, 1], [42, 7])
    assert torch.equal(generator.sample([0, 1], [42, 7]), wanted)
    with generator.training():
        generator.estimate(DRAW)
        assert torch.equal(generator.sample([0, 1], [42, 7]), wanted)
    assert generator.info.settings.startswith("gradients by ")
    assert "settings" not in plain.info.to_dict()


def test_the_users_vae_comes_back_as_it_was(make):
    vae = load_other()

    def state():
        named = vae.first_stage_model.named_parameters()
        return [(name, id(p), p.requires_grad, p.is_inference(), float(p.float().sum())) for name, p in named]

    with torch.inference_mode():
        before = state()
    learn(make(vae))
    with torch.inference_mode():
        assert state() == before


def test_the_same_vae_is_none(make, models):
    assert make(models[1]).vaes == [models[1]]


def test_what_does_not_fit_is_refused(make, monkeypatch):
    with pytest.raises(GeneratorError, match="latents of 16 channels, but the VAE on 4"):
        make(load_other(4))
    vae = copy.copy(load_other())
    decode = vae.first_stage_model.decode
    monkeypatch.setattr(vae.first_stage_model, "decode", lambda latents: F.avg_pool2d(decode(latents), 2))
    generator = make(vae)
    with pytest.raises(GeneratorError, match="pictures of 64 × 64 pixels, as the VAE does, got 32 × 32"):
        learn(generator)


def test_taef2_beside_the_vae_of_flux_2(comfy):
    import importlib

    import comfy.sd
    from comfy.taesd.taesd import TAESD

    from dual_process.generators.comfy.generator import ComfyGenerator

    tiny = importlib.import_module("comfy_tinies.flux_2").TINIES[0]
    with torch.inference_mode():
        state = {n: torch.randn(t.shape) * 0.02 for n, t in TAESD(latent_channels=128).state_dict().items()}
        vae = comfy.sd.VAE(sd=state, metadata={"tae_latent_channels": 128})  # as ComfyUI's loader calls it for "taef2"
    latent = {"samples": torch.zeros(tiny.latent)}
    parts = (*tiny.build(torch.float32), [tiny.conditioning(0)])
    generator = ComfyGenerator(*parts, latent=latent, steps=1, gradient_vae=vae)
    with generator.training():
        image = generator.estimate(Draw((0,), (4,), (0,))).image
    assert image.shape == generator.sample([0], [4]).shape == (1, 3, 32, 32)
