"""A LoRA trained in ComfyUI, taken into ComfyUI's own loaders, into diffusers, and beside other LoRAs and dtypes."""

from __future__ import annotations

import logging

import pytest
import torch
from comfy_models import SIZE, build_transformer, conditionings, write_files
from fakes import FakeCritic
from safetensors.torch import save_file

from dual_process.distillation import Draw, GeneratorError, Question, Recipe, distill

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}


@pytest.fixture
def load(comfy):
    def load_files(dtype: torch.dtype = torch.float32, weight_dtype: str = "default"):
        unet, _ = write_files(comfy / "models", "schnell", dtype)
        import nodes

        with torch.inference_mode():
            (model,) = nodes.UNETLoader().load_unet(unet.name, weight_dtype)
            (vae,) = nodes.VAELoader().load_vae("tiny-vae.safetensors")
        return model, vae

    return load_files


def generator_for(model, vae, **changes):
    from dual_process.generators.comfy.generator import ComfyGenerator

    return ComfyGenerator(model, vae, conditionings(), latent=EMPTY, **changes)


def trained(model, vae, deviation=0.3):
    """A generator whose LoRA is random, as after training."""
    generator = generator_for(model, vae)
    generator.add_lora(4, 8.0, seed=1)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation)
    return generator


def forward(generator):
    """The model's prediction at one fixed point, with whatever LoRAs it has."""
    with generator.training(), torch.no_grad():
        draw = Draw((0, 1), (5, 6), (0, 0))
        return generator.estimate(draw).prediction


@pytest.fixture
def no_warnings(caplog):
    caplog.set_level(logging.INFO)
    yield
    lines = [r.getMessage() for r in caplog.records]
    assert not [line for line in lines if "lora key not loaded" in line or "NOT LOADED" in line]


def into_core(generator, way, path):
    """The LoRA, taken up by one of core's loaders; the patched MODEL."""
    import comfy_extras.nodes_train

    import nodes

    model, native = generator.model.clone(), generator.lora_state_dict("comfyui")
    with torch.inference_mode():
        if way in ("diffusers file", "native file"):
            save_file(
                native if way == "native file" else generator.lora_state_dict("diffusers"), path / "it.safetensors"
            )
            return nodes.LoraLoaderModelOnly().load_lora_model_only(model, "it.safetensors", 1.0)[0]
        return comfy_extras.nodes_train.LoraModelLoader.execute(model, native, 1.0, way == "bypass").result[0]


@pytest.mark.parametrize("way", ["model loader", "bypass", "diffusers file", "native file"])
def test_core_loaders_give_the_model_as_trained(load, comfy, way, no_warnings):
    model, vae = load()
    generator = trained(model, vae)
    wanted, base = forward(generator), forward(generator_for(model, vae))
    patched = into_core(generator, way, comfy / "models" / "loras")
    loaded = forward(generator_for(patched, vae))
    assert float((wanted - base).norm() / wanted.norm()) > 0.1
    assert torch.allclose(loaded, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert torch.allclose(forward(generator_for(model, vae)), base, atol=1e-6)  # the user's own MODEL has none of it


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "bound"),
    [(torch.bfloat16, "default", 0.03), (torch.float32, "fp8_e4m3fn", 0.06), (torch.bfloat16, "fp8_e5m2", 0.12)],
)
def test_low_precision_models_train_and_load_back(load, comfy, dtype, weight_dtype, bound):
    model, vae = load(dtype, weight_dtype)
    generator = trained(model, vae)
    with generator.training():
        generator.estimate(Draw((0,), (5,), (0,))).image.mean().backward()
    assert all(p.grad.isfinite().all() for p in generator.lora_parameters().values())
    assert sum(float(p.grad.abs().sum()) for p in generator.lora_parameters().values()) > 0
    wanted = forward(generator)
    loaded = forward(generator_for(into_core(generator, "bypass", comfy / "models" / "loras"), vae))
    assert float((loaded - wanted).norm() / wanted.norm()) < bound


@pytest.mark.parametrize("bypass", [False, True])
def test_trains_beside_a_lora_of_the_user(load, bypass):
    import comfy_extras.nodes_train

    model, vae = load()
    other = {k: v * 0.5 for k, v in trained(model, vae).lora_state_dict("comfyui").items() if "single" in k}
    other |= {k: v * 2 for k, v in other.items() if k.endswith(".alpha")}  # halving B halves the LoRA; not its alpha
    with torch.inference_mode():
        theirs = comfy_extras.nodes_train.LoraModelLoader.execute(model, other, 1.0, bypass).result[0]
    with_theirs = forward(generator_for(theirs, vae))
    assert not torch.allclose(with_theirs, forward(generator_for(model, vae)), atol=1e-3)
    generator = generator_for(theirs, vae)
    generator.add_lora(4, 8.0, seed=1)
    assert torch.allclose(forward(generator), with_theirs, atol=1e-5)  # a fresh LoRA changes nothing
    with generator.training():
        generator.estimate(Draw((0,), (5,), (0,))).image.mean().backward()
    gradient = {n: p.grad for n, p in generator.lora_parameters().items() if n.endswith("lora_B")}
    plain = generator_for(model, vae)
    plain.add_lora(4, 8.0, seed=1)
    with plain.training():
        plain.estimate(Draw((0,), (5,), (0,))).image.mean().backward()
    name = "double_blocks.0.img_attn.qkv.lora_B"
    assert not torch.allclose(gradient[name], plain.lora_parameters()[name].grad, rtol=0.01)
    assert torch.allclose(forward(generator_for(theirs, vae)), with_theirs, atol=1e-6)


def test_diffusers_loads_the_same_lora(load):
    from comfy_models import diffusers_generator

    generator = trained(*load())
    theirs = diffusers_generator("schnell")
    theirs.load_lora_state_dict(generator.lora_state_dict("diffusers"))
    draw = Draw((0, 1), (5, 6), (0, 0))
    with torch.no_grad():
        image = theirs.estimate(draw).image
    with generator.training(), torch.no_grad():
        ours = generator.estimate(draw).image
    assert torch.allclose(ours, image, atol=1e-4)


def test_a_plain_diffusers_transformer_loads_the_same_lora(load):
    generator = trained(*load())
    transformer = build_transformer("schnell")
    state = generator.lora_state_dict("diffusers")
    transformer.load_lora_adapter(state, prefix="transformer", network_alphas=None)
    fresh = {name for name, _ in transformer.named_parameters() if "lora_" in name}
    assert len(fresh) == len([k for k in state if not k.endswith(".alpha")])


def test_other_formats_are_refused(load):
    generator = trained(*load())
    with pytest.raises(GeneratorError, match="'diffusers' or 'comfyui'"):
        generator.lora_state_dict("kohya")


def test_distil_and_take_up_the_result(load):
    model, vae = load()
    generator = generator_for(model, vae)
    critic = FakeCritic()
    critic.direction = lambda text: torch.full((3 * SIZE * SIZE,), 1e-3)
    critic.log_likelihood = lambda images, questions: torch.nn.functional.logsigmoid(
        (images.flatten(1).mean(dim=1, keepdim=True) - 0.5) * 20
    ).repeat(1, len(questions))
    recipe = Recipe(
        (Question("bright?"),), train_steps=8, learning_rate=1e-2, rank=4, seed=3, penalties={"velocity": 0.01}
    )
    with torch.inference_mode():
        result = distill(generator, critic, recipe)
    assert result.history[-1].loss < result.history[0].loss
    fresh = generator_for(model, vae)
    fresh.load_lora_state_dict(result.lora_state_dict("comfyui"))
    assert torch.equal(forward(fresh), forward(generator))
