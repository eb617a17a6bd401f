"""The demo models in ComfyUI against the same models in diffusers."""

from __future__ import annotations

import pytest
import torch

from dual_process import demo
from dual_process.demo import strokes

pytestmark = pytest.mark.comfyui
WORLDS = {
    "landscapes": (demo, 14, ["a sunset sky over the sea", "the grass under a night sky with a house"]),
    "strokes": (strokes, 16, ["a blue house and a tree by night", "four balls"]),
}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    """A world's module, the side of its latents, and two prompts."""
    return WORLDS[request.param]


@pytest.fixture(scope="module")
def prompts(world):
    return world[2]


@pytest.fixture(scope="module")
def empty(world):
    return {"samples": torch.zeros(1, 16, world[1], world[1])}


@pytest.fixture(scope="module")
def models(comfy, world):
    from dual_process.demo.comfy.models import load_models

    with torch.inference_mode():
        return load_models(world[0].WEIGHTS / "pipeline")


@pytest.fixture(scope="module")
def generator(world, prompts):
    return world[0].load(prompts)[0]


def encode(clip, text):
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


@pytest.mark.parametrize("index", [0, 1])
def test_text_encoders(models, generator, prompts, index):
    ((sequence, extra),) = encode(models[1], prompts[index])
    ours = generator._prompts.conditions[index]
    assert torch.allclose(sequence, ours["sequence"], atol=1e-4)
    assert torch.allclose(extra["pooled_output"], ours["pooled"], atol=1e-4)


def test_unknown_words_and_long_prompts_are_taken(models, generator):
    ((sequence, _),) = encode(models[1], "a zeppelin over the sea, the sea, the sea, and the sea")
    assert sequence.shape[1] % generator._prompts.conditions[0]["sequence"].shape[1] == 0
    assert sequence.isfinite().all()


@pytest.mark.parametrize("index", [0, 1])
def test_ksampler_and_vae_decode_give_the_same_pictures(models, generator, prompts, empty, index):
    import nodes

    model, clip, vae = models
    cond = encode(clip, prompts[index])
    with torch.inference_mode():
        for steps in (1, 4):  # whose noise levels ComfyUI hits exactly
            (latent,) = nodes.KSampler().sample(model, 5, steps, 1.0, "euler", "simple", cond, cond, empty)
            (image,) = nodes.VAEDecode().decode(vae, latent)
            wanted = generator.sample([index], [5], num_inference_steps=steps)[0]
            assert torch.allclose(image[0].permute(2, 0, 1), wanted, atol=1e-4)  # HWC -> CHW


def test_vae_encode_is_that_of_diffusers(models, generator):
    import nodes

    picture = generator.sample([0], [1])
    with torch.inference_mode():
        (latent,) = nodes.VAEEncode().encode(models[2], picture.movedim(1, -1))
        (image,) = nodes.VAEDecode().decode(models[2], latent)
    with torch.no_grad():
        wanted = generator.vae.decode(generator.vae.encode(picture * 2 - 1).latents).sample
    assert torch.allclose(image.movedim(-1, 1), ((wanted + 1) / 2).clamp(0, 1), atol=1e-4)


def test_the_generator_over_them_equals_the_demo_generator(models, generator, prompts, empty):
    from dual_process.generators.comfy.generator import ComfyGenerator

    model, clip, vae = models
    with torch.inference_mode():
        conds = [encode(clip, p) for p in prompts]
        ours = ComfyGenerator(model, vae, conds, latent=empty, steps=1)
        pictures = ours.sample([0, 1], [3, 4])
    assert torch.allclose(pictures, generator.sample([0, 1], [3, 4]), atol=1e-4)
