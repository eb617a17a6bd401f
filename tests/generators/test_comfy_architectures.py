"""Every architecture of ComfyUI: its pictures are KSampler's, its gradients are right, and its LoRA loads back."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analytic import MEASURES, AnalyticCritic
from safetensors.torch import save_file
from torch.nn import functional as F

from dual_process.core.errors import GeneratorError, LoraFileError
from dual_process.core.protocols import Draw, Sampling
from dual_process.distillation import Question, Recipe, distill
from dual_process.generators.architectures import ARCHITECTURES
from dual_process.generators.interchange import converted

pytestmark = pytest.mark.comfyui
MODULES = sorted(p.stem for p in (Path(__file__).parent / "comfy_tinies").glob("[a-z]*.py"))
TINIES = [tiny for name in MODULES for tiny in importlib.import_module(f"comfy_tinies.{name}").TINIES]


@pytest.fixture(scope="module", params=TINIES, ids=lambda tiny: tiny.name)
def tiny(request):
    return request.param


@pytest.fixture(scope="module")
def models(comfy, tiny):
    model, vae = tiny.build(torch.float32)
    with torch.inference_mode():
        centre(vae, empty(tiny)["samples"].shape)
    return model, vae


def centre(vae, latents):
    """Pictures around the middle of the displayable range, where a critic's gradient passes."""
    from dual_process.generators.comfy.inputs import output_map

    scale, shift = output_map(vae)
    latent = torch.randn(latents, generator=torch.Generator().manual_seed(1))
    decoder = vae.first_stage_model

    def pixels():
        return decoder.decode(latent).float() * scale + shift

    last = [
        m for m in decoder.modules() if getattr(m, "out_channels", 0) == 3 and getattr(m, "bias", None) is not None
    ][-1]
    last.weight.mul_(0.3 / float(pixels().std()))
    before = pixels().mean()
    last.bias.add_(1.0)
    last.bias.sub_(1.0 + (before - 0.5) / (pixels().mean() - before))


def empty(tiny, wide=False):
    *sides, height, width = tiny.latent
    return {"samples": torch.zeros(*sides, height, width * 3 // 2 if wide else width)}


@pytest.fixture
def make(tiny, models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    def build(model=None, wide=False, **changes):
        options = {"steps": 3, **tiny.options, **changes}
        if options.get("cfg", 1) != 1:
            options["negative"] = tiny.conditioning(1)
        positive = [tiny.conditioning(0), tiny.conditioning(1)]
        return ComfyGenerator(model or models[0], models[1], positive, latent=empty(tiny, wide), **options)

    return build


def test_every_architecture_of_comfyui_has_a_tiny_model():
    names = {name for architecture in ARCHITECTURES for name in architecture.comfyui.values()}
    assert {tiny.name for tiny in TINIES} == names


def test_it_is_called_by_its_name(tiny, make):
    assert make().info.architecture == tiny.name


@pytest.mark.parametrize("wide", [False, True])
def test_pictures_are_ksamplers(tiny, models, make, wide):
    import nodes

    generator = make(wide=wide)
    cfg, steps = tiny.options.get("cfg", 1.0), generator.num_inference_steps
    scheduler = tiny.options.get("scheduler", "simple")
    with torch.inference_mode():
        prompts = (tiny.conditioning(0), tiny.conditioning(1))
        (latent,) = nodes.KSampler().sample(models[0], 4, steps, cfg, "euler", scheduler, *prompts, empty(tiny, wide))
        (image,) = nodes.VAEDecode().decode(models[1], latent)
    torch.testing.assert_close(generator.sample([0], [4]), image.movedim(-1, 1).clone(), atol=1e-4, rtol=0)


def test_pictures_of_another_size(tiny, make):
    generator = make()
    height, width = generator.sample([0], [4]).shape[-2:]
    assert generator.sample([0], [4], sampling=Sampling(height=height, width=2 * width)).shape[-1] == 2 * width
    with pytest.raises(GeneratorError, match="image size in multiples of"):
        generator.sample([0], [4], sampling=Sampling(height=height + 4))


def test_prompts_of_one_shape_share_a_pass(tiny, models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    sequence, values = tiny.conditioning(0)[0]
    other = {name: value.neg() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    negative = tiny.conditioning(1) if tiny.options.get("cfg", 1) != 1 else None
    positives = [tiny.conditioning(0), [[sequence.neg(), other]]]
    options = {"steps": 3, **tiny.options, "negative": negative}
    generator = ComfyGenerator(*models, positives, latent=empty(tiny), **options)
    passes = []
    generator._network.register_forward_hook(lambda *_: passes.append(1))

    def found(*prompts):
        seeds = (3, 4, 5)[: len(prompts)] if len(prompts) > 1 else (3 + prompts[0],)
        passes.clear()
        return prediction(generator, draw=Draw(prompts, seeds, (0,) * len(prompts))), len(passes)

    (together, shared), (first, own), (second, _) = found(0, 1), found(0), found(1)
    torch.testing.assert_close(together, torch.cat([first, second]), atol=1e-5, rtol=1e-5)
    assert shared == own


def test_a_tiny_decoder_of_flux_2(comfy):
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    from dual_process.generators.comfy.generator import ComfyGenerator

    tiny = next(t for t in TINIES if t.name == "flux-2-klein")
    with torch.inference_mode():
        state = {n: torch.randn(t.shape) * 0.02 for n, t in TAESD(latent_channels=128).state_dict().items()}
        vae = comfy.sd.VAE(sd=state, metadata={"tae_latent_channels": 128})  # as ComfyUI's loader calls it for "taef2"
    generator = ComfyGenerator(tiny.build(torch.float32)[0], vae, [tiny.conditioning(0)], latent=empty(tiny), steps=1)
    assert generator.sample([0], [4]).shape[-2:] == (32, 32)
    assert generator.sample([0], [4], sampling=Sampling(height=32, width=64)).shape[-2:] == (32, 64)


def test_a_lora_of_another_architecture_is_refused(make):
    with pytest.raises(LoraFileError, match="another model"):
        make().load_lora_state_dict({"diffusion_model.nothing.like.it.lora_A.weight": torch.zeros(2, 4)})


def randomize(generator, deviation=0.1):
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation / len(parameter) ** 0.5)


@pytest.fixture
def trained(make):
    """A generator whose LoRA is random, as after training."""
    generator = make()
    generator.add_lora(2, 4.0, seed=0)
    randomize(generator)
    return generator


POINT = Draw((0, 1), (3, 4), (1, 1))
UNMOVED = replace(POINT, base_trajectory=True)  # the roll-out up to here, which has no gradient, leaves the LoRA out


def prediction(generator, scale=1.0, draw=POINT):
    with generator.training(), torch.no_grad(), generator._scaled(scale):
        return generator.estimate(draw, ["prediction"]).prediction


def gradients(generator):
    """Of a fixed linear functional of the prediction, and its value."""
    with generator.training():
        value = functional(generator.estimate(UNMOVED, ["prediction"]).prediction)
        value.backward()
    # Of the last block, what makes text alone may reach no picture.
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in generator.lora_parameters().items()}
    for parameter in generator.lora_parameters().values():
        parameter.grad = None
    return found


def functional(output):
    return (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(9))).sum()


def test_gradients_are_those_of_finite_differences(trained):
    found = gradients(trained)
    random = torch.Generator().manual_seed(6)
    step = 1e-2
    by_size = sorted(found, key=lambda name: -float(found[name].norm()))
    for name in (next(n for n in by_size if n.endswith(part)) for part in ("lora_A", "lora_B")):
        parameter = trained.lora_parameters()[name]
        direction = torch.randn(parameter.shape, generator=random)
        direction = found[name] / found[name].norm() + direction / direction.norm()
        values = []
        for sign in (step, -step):
            with torch.no_grad():
                parameter.add_(direction * sign)
                values.append(float(functional(prediction(trained, draw=UNMOVED))))
                parameter.sub_(direction * sign)
        slope = float((found[name] * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.01), name


def test_checkpointed_gradients_are_the_plain_ones(make, trained):
    frugal = make(gradient_checkpointing=True)
    frugal.load_lora_state_dict(trained.lora_state_dict("comfyui"))
    plain, recomputed = gradients(trained), gradients(frugal)
    size = max(float(gradient.abs().max()) for gradient in plain.values())
    assert size > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-4 * size, rtol=1e-4, msg=name)


def test_bases_in_fp8_train(tiny, make, trained):
    exact, model = gradients(trained), tiny.build(torch.float8_e4m3fn)[0]
    assert torch.float8_e4m3fn in {p.dtype for p in model.model.diffusion_model.parameters()}
    found = []
    for frugal in (False, True):
        generator = make(model, gradient_checkpointing=frugal)
        generator.load_lora_state_dict(trained.lora_state_dict("comfyui"))
        found.append(gradients(generator))
    wanted = prediction(trained)
    off = float((prediction(generator) - wanted).norm() / wanted.norm())
    turned = 1 - float(F.cosine_similarity(whole(found[0]), whole(exact), dim=0))
    print(f"{tiny.name}: an fp8 base moves the prediction by {off:.3f} and turns the gradient by {turned:.4f}")
    assert 0 < off < 0.15
    assert turned < 0.03
    torch.testing.assert_close(
        whole(found[1]), whole(found[0]), atol=1e-4 * float(whole(found[0]).abs().max()), rtol=1e-4
    )


def whole(tensors):
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("form", ["comfyui", "diffusers", "kohya"])
def test_the_lora_loads_into_comfyui(comfy, tiny, models, make, trained, caplog, form):
    import nodes

    caplog.set_level(logging.INFO)
    folder = comfy / "models" / "loras"
    folder.mkdir(exist_ok=True)
    state = trained.lora_state_dict("comfyui") if form != "diffusers" else trained.lora_state_dict(form)
    save_file(converted(state, form), folder / "architecture.safetensors")
    wanted = prediction(trained)
    assert float((wanted - prediction(trained, 0.0)).abs().max()) > 1e-2 * float(wanted.abs().max())
    with torch.inference_mode():
        (patched,) = nodes.LoraLoaderModelOnly().load_lora_model_only(models[0], "architecture.safetensors", 1.0)
    assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
    torch.testing.assert_close(prediction(make(patched)), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("question", MEASURES)
def test_thirty_steps_move_what_the_critic_asks_for(tiny, make, question):
    generator = make()
    pictures = ([0, 1], [11, 12])
    before = MEASURES[question](generator.sample(*pictures)).mean()
    settings = {"rank": 4, "lora_alpha": 8.0, "learning_rate": 0.02, "batch_size": 1}
    distill(generator, AnalyticCritic(), Recipe((Question(question),), train_steps=30, **settings))
    after = MEASURES[question](generator.sample(*pictures)).mean()
    print(f"{tiny.name}: {question} {before:.3f} -> {after:.3f}")
    assert after > before + 0.01
