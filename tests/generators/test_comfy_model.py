"""The ComfyUI generator against diffusers on the same weights, against KSampler, and against its own promises."""

from __future__ import annotations

import copy
import hashlib
import math

import comfy_models
import pytest
import torch
from comfy_models import SIZE, conditionings, diffusers_generator, write_files
from fakes import recipe

from dual_process.distillation import Anchors, Draw, GeneratorError, Sampling, StopRequested
from dual_process.distillation.anchors import Anchor, draw_anchors
from dual_process.distillation.batch import backward, needs_of, penalties_of
from dual_process.distillation.draws import draw_batch
from dual_process.distillation.penalties import ANCHORS
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.architectures.layers import splits
from dual_process.generators.architectures.packing import pack

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}


@pytest.fixture(scope="module", params=["schnell", "dev"])
def flavour(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def load(comfy):
    """Loads MODEL and VAE as nodes do: by core's loaders, in inference mode."""

    def load_files(flavour: str, dtype: torch.dtype = torch.float32, weight_dtype: str = "default"):
        unet, _ = write_files(comfy / "models", flavour, dtype)
        import nodes

        with torch.inference_mode():
            (model,) = nodes.UNETLoader().load_unet(unet.name, weight_dtype)
            (vae,) = nodes.VAELoader().load_vae("tiny-vae.safetensors")
        return model, vae

    return load_files


@pytest.fixture(scope="module")
def models(load, flavour):
    return load(flavour)


@pytest.fixture
def make(models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    def build(**changes):
        model, vae = models
        return ComfyGenerator(model, vae, conditionings(), **{"latent": EMPTY, "steps": 4, **changes})

    return build


def draw(steps=(2, 0, 1), prompts=(0, 1, 0), **changes) -> Draw:
    return Draw(prompts, tuple(range(5, 5 + len(steps))), steps, **changes)


def randomize(generator, deviation=0.3):
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation)


def gradients(generator, the_draw):
    """The estimate, and the gradient of a fixed linear functional of its prediction at the LoRA's tensors.

    Not of the picture: the decoder's ReLUs would make jumps of rounding errors.
    """
    with generator.training():
        estimate = generator.estimate(the_draw, ["image", "prediction", "base_prediction"])
        prediction = as_tokens(estimate.prediction)
        weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(9))
        (prediction * weights).mean().backward()
    grads = {name: p.grad.clone() for name, p in generator.lora_parameters().items()}
    for parameter in generator.lora_parameters().values():
        parameter.grad = None
    return estimate, grads


def as_tokens(prediction):
    return pack(prediction) if prediction.ndim == 4 else prediction


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.fixture
def same_weights(make, flavour):
    """A ComfyUI and a diffusers generator with the same weights, prompts and LoRA, which is not zero."""
    ours, theirs = make(), diffusers_generator(flavour)
    ours.add_lora(4, 8.0, seed=1)
    randomize(ours)
    theirs.load_lora_state_dict(ours.lora_state_dict("diffusers"))
    return ours, theirs


def assert_same_gradient(ours, theirs):
    """Of a ComfyUI LoRA, whose layers are fused, and of the same LoRA in diffusers."""
    layers = {name.rpartition(".")[0] for name in ours}
    for native, parts in splits(FLUX.blocks, layers, "comfyui"):
        if native not in layers:
            continue
        a = sum(theirs[f"{part}.lora_A"] for part in parts)
        b = torch.cat([theirs[f"{part}.lora_B"] for part in parts])
        assert relative(ours[f"{native}.lora_A"], a) < 1e-4, native
        assert relative(ours[f"{native}.lora_B"], b) < 1e-4, native


@pytest.mark.parametrize("renoise", [False, True])
def test_estimate_and_gradient_equal_those_of_diffusers(same_weights, renoise):
    changes = {"renoise_times": (0.9, 0.3, 0.5), "renoise_seeds": (1, 2, 3)} if renoise else {}
    ours, theirs = same_weights
    mine, my_gradient = gradients(ours, draw(**changes))
    reference, their_gradient = gradients(theirs, draw(**changes))
    assert relative(mine.image, reference.image) < 1e-4
    assert relative(as_tokens(mine.prediction), reference.prediction) < 1e-5
    assert relative(as_tokens(mine.base_prediction), reference.base_prediction) < 1e-5
    assert relative(reference.base_prediction, reference.prediction) > 0.1
    assert_same_gradient(my_gradient, their_gradient)


@pytest.mark.parametrize(
    ("noise_level", "timesteps"), [("judged", "sampler"), ("random", "sampler"), ("random", "renoise")]
)
def test_the_anchors_penalty_equals_that_of_diffusers(same_weights, noise_level, timesteps):
    plan = recipe(
        batch_size=4, penalties={"anchors": 0.7}, anchors=Anchors(noise_level=noise_level), timesteps=timesteps
    )
    anchors = [Anchor(0, 5, 0.9), Anchor(1, 6, 0.8), Anchor(0, 2**63 - 1, 0.7)]
    beside = draw_anchors(plan, 0, 0, anchors, draw_batch(plan, 0, 0, 2, 4), 4)
    assert len({*beside.sampler_steps}) > 1

    def penalise(generator):
        with generator.training():
            penalties = penalties_of(plan, ANCHORS, generator.estimate(beside, needs_of(plan, ANCHORS)))
            backward(plan, penalties, 0.0)
        return float(penalties["anchors"].detach()), {n: p.grad for n, p in generator.lora_parameters().items()}

    (value, gradient), (their_value, their_gradient) = map(penalise, same_weights)
    assert value == pytest.approx(their_value, rel=1e-5)
    assert their_value > 0.01
    assert_same_gradient(gradient, their_gradient)


def test_gradient_of_the_decoder_equals_that_of_diffusers(make):
    generator, vae = make(), comfy_models.build_vae()
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with generator.training():
        ours = generator._decode(latents)
        (gradient,) = torch.autograd.grad(ours.square().sum(), latents)
    theirs = (vae.decode(latents).sample + 1) / 2
    assert relative(ours, theirs) < 1e-5
    assert relative(gradient, torch.autograd.grad(theirs.square().sum(), latents)[0]) < 1e-4


OUTPUTS = {  # in place, as ComfyUI expects it, and what it comes to without the clamp
    "standard": (lambda x: x.add_(1.0).div_(2.0).clamp_(0.0, 1.0), lambda x: (x + 1) / 2),
    "identity": (lambda x: x, lambda x: x),
    "clamped": (lambda x: x.clamp_(0.0, 1.0), lambda x: x),
    "inverted": (lambda x: x.div_(-4.0).add_(1.0), lambda x: 1 - x / 4),
}


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_pixels_are_made_as_the_vae_makes_them(make, models, kind):
    """For the critic without the clamp; in finished pictures exactly as ComfyUI's own decoding."""
    import nodes

    model, vae = models[0], copy.copy(models[1])
    vae.process_output, wanted = OUTPUTS[kind]
    generator = type(make())(model, vae, conditionings(), latent=EMPTY)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with generator.training():
        decoded = generator._decode(latents)
        (gradient,) = torch.autograd.grad(decoded.square().sum(), latents)
    theirs = wanted(comfy_models.build_vae().decode(latents).sample)
    assert relative(decoded, theirs) < 1e-5
    # Norms of random values of no mean enlarge the rounding, which is another on each kind of processor.
    assert relative(gradient, torch.autograd.grad(theirs.square().sum(), latents)[0]) < 1e-3
    with torch.inference_mode():
        (image,) = nodes.VAEDecode().decode(vae, {"samples": model.model.process_latent_out(latents.detach().clone())})
    assert torch.allclose(decoded.detach().clamp(0, 1), image.clamp(0, 1).movedim(-1, 1), atol=2e-6)


def test_a_video_autoencoder_that_decodes_to_pixels(make, models):
    """The real TAEHV, random, by core's loader."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    import nodes

    random = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in TAEHV(16).state_dict().items()}
    state = {n: torch.randn(s, generator=random) / max(1, math.prod(s[1:])) ** 0.5 for n, s in shapes.items()}
    vae = comfy.sd.VAE(sd=state)
    generator = type(make())(models[0], vae, conditionings(), latent=EMPTY)
    latents = torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (image,) = nodes.VAEDecode().decode(vae, {"samples": models[0].model.process_latent_out(latents)})
    with generator.training():
        decoded = generator._decode(latents)
    assert decoded.std() > 0.01
    assert torch.allclose(decoded, image.movedim(-1, 1), atol=2e-6)


@pytest.mark.parametrize("output", [torch.sigmoid, torch.tanh, torch.zeros_like], ids=["sigmoid", "tanh", "constant"])
def test_a_vae_whose_pixels_are_no_affine_map_is_refused(make, models, output):
    vae = copy.copy(models[1])
    vae.process_output = output
    with pytest.raises(GeneratorError, match="scaling and shifting"):
        type(make())(models[0], vae, conditionings(), latent=EMPTY)


def test_gradient_checkpointing_changes_nothing(make):
    plain, checkpointed = make(), make(gradient_checkpointing=True)
    for generator in (plain, checkpointed):
        generator.add_lora(4, 8.0, seed=1)
        randomize(generator)
    first, second = gradients(plain, draw()), gradients(checkpointed, draw())
    assert torch.equal(first[0].image, second[0].image)
    for name, gradient in first[1].items():
        assert relative(second[1][name], gradient) < 1e-6, name


@pytest.fixture
def ksampler(models):
    """Core's own picture of a prompt and seed, [1, 3, H, W]."""
    import nodes

    def sample(prompt, seed, model=None):
        with torch.inference_mode():
            (latent,) = nodes.KSampler().sample(
                model or models[0],
                seed,
                4,
                1.0,
                "euler",
                "simple",
                conditionings()[prompt],
                conditionings()[prompt],
                EMPTY,
            )
            (image,) = nodes.VAEDecode().decode(models[1], latent)
        return image.clone().movedim(-1, 1)  # BHWC -> BCHW

    return sample


def test_pictures_without_lora_are_those_of_ksampler(make, ksampler):
    generator = make()
    generator.add_lora(4, 8.0, seed=1)
    randomize(generator)
    pictures = generator.sample([0, 1], [42, 7], lora_scale=0.0)
    assert torch.allclose(pictures[:1], ksampler(0, 42), atol=2e-6)
    assert torch.allclose(pictures[1:], ksampler(1, 7), atol=2e-6)
    assert not torch.allclose(generator.sample([0], [42]), ksampler(0, 42), atol=1e-3)


def state_of(models):
    """Everything of MODEL and VAE that could have changed: bytes, identities, flags, attributes."""
    model, vae = models
    rows = []
    for module in (model.model, vae.first_stage_model):
        for name, part in module.named_modules():
            rows.append((name, sorted(part.__dict__), len(part._forward_pre_hooks), part.training))
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            with torch.inference_mode():
                digest = hashlib.sha256(tensor.detach().float().numpy().tobytes()).hexdigest()
            rows.append((name, id(tensor), tensor.requires_grad, tensor.is_inference(), digest))
    return rows, sorted(model.model_options), sorted(model.patches), sorted(model.injections)


def test_the_users_models_come_back_as_they_were(make, models, ksampler):
    import comfy.model_management

    picture = ksampler(0, 1)  # has loaded the model, as the first run does
    before = state_of(models)

    def run(error=None):
        generator = make(gradient_checkpointing=True)
        generator.add_lora(4, 8.0, seed=1)
        with generator.training():
            generator.estimate(draw(), ["image", "base_image"]).image.mean().backward()
            if error:
                raise error

    with torch.inference_mode():
        run()
        assert state_of(models) == before
        with pytest.raises(RuntimeError, match="broken"):
            run(RuntimeError("broken"))
        assert state_of(models) == before
        with pytest.raises(StopRequested):
            run(comfy.model_management.InterruptProcessingException())
        assert state_of(models) == before
    assert not comfy.model_management.in_training
    assert torch.equal(ksampler(0, 1), picture)


def test_no_gradient_outside_the_lora(make):
    generator = make()
    generator.add_lora(2, 2.0, seed=0)
    with generator.training():
        generator.estimate(draw((0,), (0,))).image.mean().backward()
        network, vae = generator.model.model.diffusion_model, generator.vae.first_stage_model
        assert all(p.grad is None for p in [*network.parameters(), *vae.parameters()])
    assert all(p.grad is not None for p in generator.lora_parameters().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": 4.0}, "negative CONDITIONING"),
        ({"latent": {"samples": torch.ones(1, 4, 8, 8)}}, r"LATENT of 16 channels .* got \[1, 4, 8, 8\]"),
        ({"scheduler": "none"}, "scheduler out of"),
        ({"sigmas": torch.tensor([0.0, 1.0])}, "falling SIGMAS"),
        ({"sigmas": torch.tensor([1.0])}, "falling SIGMAS"),
    ],
)
def test_parts_that_do_not_fit(make, changes, message):
    with pytest.raises(GeneratorError, match=message):
        make(**changes)


def test_draws_that_do_not_fit(make):
    generator = make()
    with pytest.raises(GeneratorError, match="inside"):
        generator.estimate(draw())
    with pytest.raises(GeneratorError, match="Call add_lora"):
        generator.lora_parameters()
    with generator.training():
        for wrong in (
            draw((4,), (0,)),
            draw((0,), (2,)),
            draw(sampling=Sampling(guidance=3.0)),
            draw(sampling=Sampling(height=64)),
            draw(sampling=Sampling(9)),
            draw((0,), (0,), renoise_times=(1.5,), renoise_seeds=(1,)),
            draw((0,), (0,), renoise_times=(0.0,), renoise_seeds=(1,)),
        ):
            with pytest.raises(GeneratorError):
                generator.estimate(wrong)


def test_an_empty_latent_of_another_model_is_adapted(make):
    generator = make(latent={"samples": torch.zeros(3, 4, 8, 8)})
    assert generator.sample([0], [1]).shape == (1, 3, SIZE, SIZE)


def test_quantised_weights_are_borrowed_over_the_same_memory(comfy):
    from comfy.quant_ops import QuantizedTensor

    from dual_process.comfy_host.weights import plain

    with torch.inference_mode():
        weight = QuantizedTensor.from_float(torch.randn(16, 16), "TensorCoreFP8E4M3Layout")
    assert weight._qdata.is_inference()
    borrowed = plain(weight)
    assert not borrowed._qdata.is_inference()
    assert borrowed._qdata.data_ptr() == weight._qdata.data_ptr()
    assert borrowed._params.scale.data_ptr() == weight._params.scale.data_ptr()
    x = torch.randn(2, 16, requires_grad=True)
    torch.nn.functional.linear(x, borrowed.dequantize()).sum().backward()
    with torch.inference_mode():
        wanted = weight.dequantize().sum(dim=0)
    assert torch.allclose(x.grad[0], wanted.clone(), atol=1e-6)
