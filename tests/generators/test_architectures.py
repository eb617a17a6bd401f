"""Every architecture of diffusers: its pictures are the pipeline's, it learns, and its LoRA loads back."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from analytic import MEASURES, AnalyticCritic
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from tiny_flux import PROMPTS

from dual_process.core.errors import GeneratorError, LoraFileError
from dual_process.core.protocols import Draw, Sampling
from dual_process.distillation import Question, Recipe, distill
from dual_process.generators import load_generator, rollout
from dual_process.generators.architectures import ARCHITECTURES
from dual_process.generators.noise import draw_noise

MODULES = sorted(p.stem for p in (Path(__file__).parent / "pipelines").glob("[a-z]*.py"))
TINIES = [tiny for name in MODULES for tiny in importlib.import_module(f"pipelines.{name}").TINIES]
STEPS = 3


@pytest.fixture(scope="module", params=TINIES, ids=lambda tiny: tiny.name)
def tiny(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / tiny.name
    tiny.build().save_pretrained(path)
    return str(path)


def load(tiny, source, **changes):
    size = {"height": tiny.size, "width": tiny.size * 3 // 2, "num_inference_steps": STEPS}
    return load_generator(source, PROMPTS, "cpu", torch.float32, **{**size, **changes})


@pytest.fixture
def generator(tiny, folder):
    return load(tiny, folder)


def run_pipeline(tiny, pipeline, generator, seed, prompt=0, **options):
    """The pipeline's own picture from the generator's noise."""
    size = generator._size(Sampling())
    noise = draw_noise([seed], size.channels, size.height, size.width)
    arguments = {"num_inference_steps": STEPS, "height": tiny.size, "width": tiny.size * 3 // 2, **tiny.options}
    arguments |= {"prompt": PROMPTS[prompt], "latents": tiny.layout(noise), "output_type": "pt", **options}
    return pipeline(**arguments).images


def test_every_architecture_has_a_tiny_pipeline():
    names = {name for architecture in ARCHITECTURES for name in architecture.pipelines}
    shown_another = {"FluxKontextPipeline"}  # Flux.1 beside a reference: test_references.py
    assert {type(tiny.build()).__name__ for tiny in TINIES} == names - shown_another


def test_it_is_called_by_its_name(tiny, generator):
    assert generator.info.architecture == tiny.name


def test_pictures_are_the_pipelines(tiny, folder, generator):
    pipeline = tiny.build()
    wanted = torch.cat([run_pipeline(tiny, pipeline, generator, seed, prompt) for seed, prompt in ((4, 0), (5, 1))])
    assert wanted.std() > 0.01
    assert wanted.shape[-1] != wanted.shape[-2]
    torch.testing.assert_close(generator.sample([0, 1], [4, 5]), wanted, atol=2e-5, rtol=0)
    shared = load(tiny, pipeline)
    torch.testing.assert_close(shared.sample([0, 1], [4, 5]), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("step", range(STEPS))
def test_the_clean_estimate_is_the_schedulers(generator, step):
    denoiser = generator._denoiser((0, 1), (4, 5), Sampling())
    with generator.training(), torch.no_grad():
        x, sigma = rollout._start(denoiser, Draw((0, 1), (4, 5), (step, step)))
        clean, slope = denoiser(x, sigma, (0, 1))
    torch.testing.assert_close(clean, scheduler_formula(generator._parts.scheduler, x, sigma[0], slope, step))


def scheduler_formula(scheduler, x, sigma, slope, step):
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # a single step from here to the end
        scheduler.set_timesteps(1, mu=0.0)
        scheduler.sigmas, scheduler.timesteps = torch.stack([sigma, sigma * 0]), (sigma * 1000)[None]
        return scheduler.step(slope, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(STEPS)
    sample = x if isinstance(scheduler, EulerDiscreteScheduler) else x / torch.sqrt(1 + sigma**2)
    return scheduler.step(slope, scheduler.timesteps[step], sample).pred_original_sample


@pytest.mark.parametrize("question", MEASURES)
def test_thirty_steps_move_what_the_critic_asks_for(tiny, folder, question):
    generator = load(tiny, folder, height=tiny.size, width=tiny.size)
    pictures = ([0, 1] * 2, [11, 12, 13, 14])
    before = MEASURES[question](generator.sample(*pictures)).mean()
    settings = {"rank": 4, "lora_alpha": 8.0, "learning_rate": tiny.learning_rate, "batch_size": 2}
    recipe = Recipe((Question(question),), train_steps=30, lora_targets=tiny.targets, **settings)
    distill(generator, AnalyticCritic(), recipe)
    after = MEASURES[question](generator.sample(*pictures)).mean()
    print(f"{tiny.name}: {question} {before:.3f} -> {after:.3f}")
    assert after > before + tiny.margin


@pytest.fixture
def trained(tiny, generator):
    """A generator whose LoRA is random, as after training."""
    generator.add_lora(2, 4.0, seed=0, targets=tiny.targets)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * tiny.lora)
    return generator


def test_the_lora_loads_into_diffusers(tiny, trained, tmp_path):
    wanted, base = trained.sample([0], [4]), trained.sample([0], [4], lora_scale=0)
    assert (wanted - base).abs().max() > 1e-2
    save_file(trained.lora_state_dict("diffusers"), tmp_path / "lora.safetensors")
    pipeline = tiny.build()
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    torch.testing.assert_close(run_pipeline(tiny, pipeline, trained, 4), wanted, atol=1e-4, rtol=0)


def test_the_lora_loads_back(tiny, folder, trained):
    fresh = load(tiny, folder)
    fresh.load_lora_state_dict(trained.lora_state_dict("diffusers"), tiny.targets)
    torch.testing.assert_close(fresh.sample([0, 1], [4, 5]), trained.sample([0, 1], [4, 5]), atol=1e-5, rtol=0)


def gradients(generator, draw):
    with generator.training():
        estimate = generator.estimate(draw)
        weights = torch.randn(estimate.prediction.shape, generator=torch.Generator().manual_seed(9))
        ((estimate.prediction * weights).mean() + estimate.image.mean()).backward()
    # Of the last block, what makes text alone may reach no picture.
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in generator.lora_parameters().items()}
    for parameter in generator.lora_parameters().values():
        parameter.grad = None
    return found


def test_checkpointed_gradients_are_the_plain_ones(tiny, folder, trained):
    frugal = load(tiny, folder, gradient_checkpointing=True)
    frugal.add_lora(2, 4.0, seed=0, targets=tiny.targets)
    for name, parameter in frugal.lora_parameters().items():
        parameter.data.copy_(trained.lora_parameters()[name])
    draw = Draw((0, 1), (4, 5), (1, 2))
    plain, recomputed = gradients(trained, draw), gradients(frugal, draw)
    size = max(float(gradient.abs().max()) for gradient in plain.values())
    assert size > 0
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-4 * size, rtol=1e-4, msg=name)


def test_a_lora_of_another_architecture_is_refused(tiny, generator):
    other = {"transformer.nothing.like.it.lora_A.weight": torch.zeros(2, 4)}
    with pytest.raises(LoraFileError, match="another model"):
        generator.load_lora_state_dict(other, tiny.targets)


def test_sizes_off_the_grid_are_refused(tiny, generator):
    with pytest.raises(GeneratorError, match="image size in multiples of"):
        generator.sample([0], [4], sampling=Sampling(height=tiny.size + 4))


def test_guidance_counts_or_is_refused(generator):
    if generator.architecture.guidance(generator._parts.config).kind == "none":
        with pytest.raises(GeneratorError, match="takes no guidance, but a guidance of 3 was asked for"):
            generator.sample([0], [4], sampling=Sampling(guidance=3.0))
    else:
        weak, strong = (generator.sample([0], [4], sampling=Sampling(guidance=g)) for g in (1.5, 6.0))
        assert not torch.allclose(weak, strong, atol=1e-4)


def test_a_pipeline_without_a_part_is_refused(tiny):
    pipeline = tiny.build()
    pipeline.vae = None
    with pytest.raises(GeneratorError, match="its vae is missing"):
        load(tiny, pipeline)
