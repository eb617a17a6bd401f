"""A tiny decoder: images for the gradient are its own, pictures stay those of the VAE."""

from __future__ import annotations

import importlib

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline
from pretended import PretendedDevice
from tiny_flux import PROMPTS

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw, Sampling
from dual_process.generators import load_generator
from dual_process.generators.diffusers.denoising import decoding_parts

NAMES = ("flux", "chroma", "stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "z_image")
DRAW = Draw((0, 1), (4, 5), (1, 2))


def decoder(channels=16, stages=4, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        sides = {f"{side}_block_out_channels": (8,) * stages for side in ("encoder", "decoder")}
        counts = {f"num_{side}_blocks": (1,) * stages for side in ("encoder", "decoder")}
        return AutoencoderTiny(latent_channels=channels, **sides, **counts, **changes).eval()


def tiny_of(name):
    return importlib.import_module(f"pipelines.{name}").TINIES[0]


def load(name, tiny_decoder=None, **options):
    tiny = tiny_of(name)
    size = {"height": tiny.size, "width": tiny.size, "num_inference_steps": 3}
    generator = load_generator(tiny.build(), PROMPTS, "cpu", tiny_decoder=tiny_decoder, **size, **options)
    generator.add_lora(2, 4.0, seed=0, targets=tiny.targets)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in generator.lora_parameters().items():
            if key.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * tiny.lora)
    return generator


def fitting(name):
    plain = load(name)
    vae = plain.vae
    stages = plain.architecture.factor(vae).bit_length()
    return decoder(vae.config.latent_channels, stages)


def what_the_vae_gets(generator, draw):
    """Latents as the pipeline hands them to its VAE, scaled."""
    seen, decode = [], generator.vae.decode
    generator.vae.decode = lambda latents, **options: (seen.append(latents), decode(latents, **options))[1]
    with generator.training(), torch.no_grad():
        generator.estimate(draw, {"image", "base_image"})
    del generator.vae.decode
    return seen  # the base image's first


@pytest.mark.parametrize("name", NAMES)
def test_images_are_decoded_from_the_networks_own_latents(name):
    tiny, plain = fitting(name), load(name)
    with torch.no_grad():
        estimate = load(name, tiny).estimate(DRAW, {"image", "base_image"})
    config = plain.vae.config
    for image, scaled in zip((estimate.base_image, estimate.image), what_the_vae_gets(plain, DRAW), strict=True):
        latents = (scaled - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        with torch.no_grad():
            wanted = (tiny.decode(latents).sample + 1) / 2
        torch.testing.assert_close(image, wanted, atol=1e-5, rtol=0)
    assert not torch.equal(estimate.image, estimate.base_image)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_a_naive_decode(checkpointing):
    """Of Flux at its first step, where the clean latents are the noise less the velocity."""
    tiny = decoder()
    generator = load("flux", tiny, gradient_checkpointing=checkpointing)
    size, draw = tiny_of("flux").size, Draw((0, 1), (4, 5), (0, 0))
    weights = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(9))
    found = []
    for naive in (False, True):
        with generator.training():
            estimate = generator.estimate(draw)
            image = estimate.image
            if naive:
                noise = [
                    torch.randn(16, size // 8, size // 8, generator=torch.Generator().manual_seed(s)) for s in (4, 5)
                ]
                packed = FluxPipeline._pack_latents(torch.stack(noise), 2, 16, size // 8, size // 8)
                clean = FluxPipeline._unpack_latents(packed - estimate.prediction, size, size, 8)
                image = (tiny.decode(clean).sample + 1) / 2
            (image * weights).mean().backward()
        found.append({key: p.grad.clone() for key, p in generator.lora_parameters().items()})
        for parameter in generator.lora_parameters().values():
            parameter.grad = None
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-4, msg=key)
    assert max(float(gradient.abs().max()) for gradient in found[1].values()) > 0
    assert all(parameter.grad is None for parameter in generator.tiny_decoder.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_the_vae(name):
    generator, plain = load(name, fitting(name)), load(name)
    wanted = plain.sample([0, 1], [4, 5])
    assert torch.equal(generator.sample([0, 1], [4, 5]), wanted)
    with generator.training():
        generator.estimate(DRAW)
        assert torch.equal(generator.sample([0, 1], [4, 5]), wanted)
    last = generator.estimate(Draw((0,), (4,), (2,), Sampling(3))).image.detach()
    assert not torch.allclose(last.clamp(0, 1), wanted[:1], atol=1e-2)
    assert generator.info.weights_sha256 == plain.info.weights_sha256
    assert "tiny decoder" in generator.info.settings
    assert "settings" not in plain.info.to_dict()


def test_it_has_a_turn_of_its_own(monkeypatch):
    resident, generator = load("flux", decoder()), load("flux", decoder(), offload=True)
    parts = {
        "network": [generator.network],
        "decoder": decoding_parts(generator.vae),
        "tiny": decoding_parts(generator.tiny_decoder),
    }
    found = []
    for one in (resident, generator):
        device = PretendedDevice(parts, monkeypatch, generator.lora_parameters().values()) if one is generator else None
        with one.training(in_turns=True):
            one.estimate(DRAW).image.square().mean().backward()
        found.append([p.grad for p in one.lora_parameters().values()])
    assert device.parts() == ["network", "tiny", "network"]
    assert all(map(torch.equal, *found))
    assert device.is_empty()


def test_the_users_decoder_stays_as_it_is():
    tiny = decoder()
    before = [(name, id(p), p.requires_grad) for name, p in tiny.named_parameters()]
    generator = load("flux", tiny, gradient_checkpointing=True)
    assert generator.tiny_decoder is not tiny
    assert [(name, id(p), p.requires_grad) for name, p in tiny.named_parameters()] == before
    assert not tiny.is_gradient_checkpointing


def test_from_a_folder(tmp_path):
    decoder().save_pretrained(tmp_path)
    images = [load("flux", given).estimate(DRAW).image for given in (decoder(), tmp_path, str(tmp_path))]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("flux", decoder(4), r"16 channels, but the tiny decoder on 4: the channels do not fit"),
        ("stable_diffusion", decoder(16), r"4 channels, but the tiny decoder on 16"),
        ("flux", decoder(16, 3), r"makes 8 pixels .* got one that makes 4"),
        ("flux", decoder(16, 3, upsampling_scaling_factor=4), r"got one that makes 16"),
        ("flux_2", decoder(32), r"no tiny decoder for FLUX.2"),
        ("qwen_image", decoder(16), r"no tiny decoder for Qwen-Image"),
        ("flux", 5, r"a folder or an AutoencoderTiny, got int"),
        ("flux", "nowhere/taef1", r"Could not load a tiny decoder from nowhere/taef1"),
    ],
)
def test_what_does_not_fit_is_refused(name, given, message):
    with pytest.raises(GeneratorError, match=message):
        load(name, given)


def test_the_folder_of_another_vae_is_refused(tmp_path):
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(GeneratorError, match="is that of AutoencoderKL"):
        load("flux", tmp_path)
