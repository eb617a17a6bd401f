from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw, Sampling
from dual_process.generators import load_generator

DRAW = Draw((0, 1, 0), (3, 4, 5), (0, 2, 1))
EVERYTHING = ("image", "prediction", "base_image", "base_prediction")


def loss_of(image: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image * weights).double().sum()


def with_lora(generator, randomize_lora):
    generator.add_lora(4, 6.0, seed=2)
    randomize_lora(generator)
    return generator


def latents_at(pipeline, run_pipeline, seed: int, step: int):
    """Packed latents with which the pipeline enters a step; those of step 3 are its result."""
    seen = []

    def remember(pipe, index, timestep, values):
        seen.append(values["latents"].clone())
        return values

    run_pipeline(pipeline, [seed], callback_on_step_end=remember)
    noise = torch.randn(16, 8, 12, generator=torch.Generator().manual_seed(seed))[None]
    return [FluxPipeline._pack_latents(noise, 1, 16, 8, 12), *seen][step]


def velocity_of(pipeline, z: torch.Tensor, sigma: torch.Tensor, guidance: float = 3.5) -> torch.Tensor:
    sequence, pooled, text_ids = pipeline.encode_prompt("a red house", max_sequence_length=12)
    return pipeline.transformer(
        hidden_states=z,
        timestep=sigma.expand(1),
        guidance=torch.tensor([guidance]) if pipeline.transformer.config.guidance_embeds else None,
        pooled_projections=pooled,
        encoder_hidden_states=sequence,
        txt_ids=text_ids,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32),
    ).sample


def decode(pipeline, z: torch.Tensor) -> torch.Tensor:
    latents = FluxPipeline._unpack_latents(z, 64, 96, 8) / 0.8 + 0.1
    return pipeline.vae.decode(latents).sample / 2 + 0.5


@pytest.mark.parametrize("step", [0, 1, 2])
@torch.no_grad()
def test_estimate_equals_the_schedulers_jump_to_sigma_zero(generator, pipeline, run_pipeline, step):
    z = latents_at(pipeline, run_pipeline, 3, step)
    scheduler = pipeline.scheduler
    sigma = scheduler.sigmas[step].clone()
    velocity = velocity_of(pipeline, z, sigma)
    scheduler.sigmas[step + 1] = 0
    scheduler._step_index = step
    clean = scheduler.step(velocity, scheduler.timesteps[step], z).prev_sample

    estimate = generator.estimate(Draw((0,), (3,), (step,)))
    torch.testing.assert_close(estimate.prediction, velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(estimate.image, decode(pipeline, clean), atol=1e-5, rtol=0)


def test_the_last_step_is_the_picture(generator):
    estimate = generator.estimate(Draw((1,), (8,), (2,), Sampling(3)))
    torch.testing.assert_close(estimate.image.detach().clamp(0, 1), generator.sample([1], [8]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_renoise_mode_follows_its_formula(generator, pipeline, run_pipeline):
    clean = latents_at(pipeline, run_pipeline, 3, 3)
    noise = torch.randn(16, 8, 12, generator=torch.Generator().manual_seed(77))[None]
    time = torch.tensor(0.35)
    z = (1 - time) * clean + time * FluxPipeline._pack_latents(noise, 1, 16, 8, 12)
    expected = z - time * velocity_of(pipeline, z, time)

    draw = Draw((0,), (3,), (0,), renoise_times=(0.35,), renoise_seeds=(77,))
    torch.testing.assert_close(generator.estimate(draw).image, decode(pipeline, expected), atol=1e-5, rtol=0)


def test_renoise_to_pure_noise_forgets_the_picture(schnell):
    draw = Draw((0,), (3,), (0,), renoise_times=(1.0,), renoise_seeds=(77,))
    fresh = Draw((0,), (77,), (0,))
    torch.testing.assert_close(schnell.estimate(draw).image, schnell.estimate(fresh).image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("draw", [DRAW, replace(DRAW, renoise_times=(0.2, 0.9, 0.5), renoise_seeds=(1, 2, 3))])
def test_a_batch_equals_one_at_a_time(generator, randomize_lora, draw):
    with_lora(generator, randomize_lora)
    together = generator.estimate(draw, EVERYTHING)
    for b in range(3):
        alone = {name: value[b : b + 1] for name, value in vars(draw).items() if isinstance(value, tuple)}
        single = generator.estimate(replace(draw, **alone), EVERYTHING)
        torch.testing.assert_close(together.image[b : b + 1], single.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.prediction[b : b + 1], single.prediction, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.base_prediction[b : b + 1], single.base_prediction, atol=1e-5, rtol=0)


def test_no_needless_forward_is_made(schnell):
    sizes = []
    schnell.network.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    schnell.estimate(DRAW)
    assert sizes == [2, 1, 3]  # samples under way at steps 0 and 1, then the step with gradient


def test_estimates_repeat_exactly(generator, randomize_lora):
    with_lora(generator, randomize_lora)
    first, second = (generator.estimate(DRAW, EVERYTHING) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.base_prediction, second.base_prediction)


def test_base_prediction_is_made_at_the_same_point_without_lora(generator, randomize_lora):
    draw = Draw((0, 1), (3, 4), (0, 0))  # no step before: the point needs no LoRA
    plain = generator.estimate(draw).prediction.detach()
    with_lora(generator, randomize_lora)
    estimate = generator.estimate(draw, EVERYTHING)
    assert torch.equal(estimate.base_prediction, plain)
    assert not estimate.base_prediction.requires_grad
    assert (estimate.prediction - plain).abs().max() > 1e-3
    assert generator.estimate(draw).base_prediction is None


def test_pictures_stay_upright(schnell):
    assert schnell.estimate(replace(DRAW, sampling=Sampling(height=32, width=112))).image.shape == (3, 3, 32, 112)


def test_gradient_reaches_the_lora_only(generator, randomize_lora):
    with_lora(generator, randomize_lora)
    with generator.training():
        loss_of(generator.estimate(DRAW).image).backward()
    ours = {id(p) for p in generator.lora_parameters().values()}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.lora_parameters().values())
    everything = [*generator.network.parameters(), *generator.vae.parameters()]
    assert all(p.grad is None for p in everything if id(p) not in ours)


# Small offsets, because the VAE is piecewise linear.
def test_gradient_agrees_with_finite_differences(schnell, randomize_lora):
    draw = replace(DRAW, sampler_steps=(0, 0, 0))  # no roll-out, which would carry no gradient
    with_lora(schnell, randomize_lora)
    with schnell.training():
        loss_of(schnell.estimate(draw).image).backward()
    for name in ("transformer_blocks.0.attn.to_q.lora_B", "single_transformer_blocks.1.proj_out.lora_A"):
        parameter = schnell.lora_parameters()[name]
        index = parameter.grad.abs().argmax()
        values = []
        for offset in (0.002, -0.002):
            with torch.no_grad():
                parameter.view(-1)[index] += offset
                values.append(loss_of(schnell.estimate(draw).image))
                parameter.view(-1)[index] -= offset
        numeric = (values[0] - values[1]) / 0.004
        assert numeric.item() == pytest.approx(parameter.grad.view(-1)[index].item(), rel=2e-2)


def test_checkpointing_changes_nothing(folder, generator, randomize_lora):
    frugal = load_generator(
        folder, generator.prompts, "cpu", height=64, width=96, num_inference_steps=3, gradient_checkpointing=True
    )
    assert frugal.network.gradient_checkpointing
    assert frugal.vae.decoder.gradient_checkpointing
    gradients = []
    for each in (generator, frugal):
        with_lora(each, randomize_lora)
        with each.training():
            loss_of(each.estimate(DRAW, EVERYTHING).image).backward()
        gradients.append({name: p.grad for name, p in each.lora_parameters().items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-6, msg=name)


def test_detached_image_backward_gives_the_same_gradient(schnell, randomize_lora):
    """The loop's order: estimate, loss on a detached leaf, then backward through the image."""
    with_lora(schnell, randomize_lora)
    parameter = schnell.lora_parameters()["transformer_blocks.0.ff.net.2.lora_B"]
    loss_of(schnell.estimate(DRAW).image).backward()
    expected, parameter.grad = parameter.grad, None
    image = schnell.estimate(DRAW).image
    leaf = image.detach().requires_grad_()
    loss_of(leaf).backward()
    image.backward(leaf.grad)
    torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler_steps": (0, 1, 3)}, "sampler steps from 0 to 2"),
        ({"sampler_steps": (0, 1)}, "3 sampler steps"),
        ({"noise_seeds": (1, 2)}, "one seed for each"),
        ({"prompt_indices": (0, 1, 2)}, "prompt indices"),
        ({"renoise_times": (0.5, 0.5), "renoise_seeds": (1, 2, 3)}, "renoise times and seeds"),
        ({"renoise_times": (0.5, 0.5, 0.5)}, "renoise times and seeds"),
        ({"renoise_times": (0.5, 0.0, 0.5), "renoise_seeds": (1, 2, 3)}, "above 0"),
        ({"sampling": Sampling(height=60)}, "multiples of 16"),
    ],
)
def test_refuses_a_bad_draw(schnell, changes, message):
    with pytest.raises(GeneratorError, match=message):
        schnell.estimate(replace(DRAW, **changes))
