"""SD 1.x, an ε-model with classifier-free guidance, from a checkpoint of reduced depth that core's loader takes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny

from dual_process.distillation import Draw

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


def unet_weights():
    """One stage of SD 1.x's UNet: its widths are fixed by ComfyUI, its depth is not."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    torch.manual_seed(2)
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        model_channels=320,
        out_channels=4,
        num_res_blocks=[1],
        channel_mult=[1],
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth=[1],
        transformer_depth_output=[1, 1],
        transformer_depth_middle=1,
        context_dim=768,
        legacy=False,
        dtype=torch.float32,
    )
    for name, parameter in unet.named_parameters():  # ComfyUI's layers are made without numbers
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))  # normalisations, biases
    return {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}


def vae_weights():
    torch.manual_seed(3)
    state = {}
    for name, tensor in AutoencoderTiny().state_dict().items():
        side, _, number, rest = name.split(".", 3)
        state[f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = tensor
    return state


@pytest.fixture(scope="module")
def models(comfy):
    import comfy.sd

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(unet_weights(), model_options={"dtype": torch.float32})
        return model, comfy.sd.VAE(sd=vae_weights())


def conditioning(seed):
    return [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), {}]]


@pytest.fixture
def generator(models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    return ComfyGenerator(
        *models, [conditioning(1)], latent=EMPTY, negative=conditioning(2), cfg=4.0, steps=3, scheduler="normal"
    )


def test_it_is_sd_1(models):
    import comfy.supported_models

    assert isinstance(models[0].model.model_config, comfy.supported_models.SD15)


def test_pictures_without_lora_are_those_of_ksampler(generator, models):
    import nodes

    with torch.inference_mode():
        (latent,) = nodes.KSampler().sample(
            models[0], 4, 3, 4.0, "euler", "normal", conditioning(1), conditioning(2), EMPTY
        )
        (image,) = nodes.VAEDecode().decode(models[1], latent)
    assert torch.allclose(generator.sample([0], [4]), image.movedim(-1, 1), atol=1e-5)


def test_gradient_equals_finite_differences_of_the_noise_prediction(generator):
    generator.add_lora(2, 4.0, seed=0)
    draw = Draw((0,), (3,), (0,))
    weights = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    parameters = generator.lora_parameters()
    name = next(n for n in parameters if "attn1.to_out.0.lora_B" in n)
    direction = torch.randn(parameters[name].shape, generator=torch.Generator().manual_seed(6))
    with generator.training():
        (generator.estimate(draw).prediction * weights).sum().backward()
        slope = float((parameters[name].grad * direction).sum())
        values = []
        for step in (0.002, -0.002):
            with torch.no_grad():
                parameters[name].add_(direction * step)
                values.append(float((generator.estimate(draw).prediction * weights).sum()))
                parameters[name].sub_(direction * step)
    assert slope == pytest.approx((values[0] - values[1]) / 0.004, rel=0.01)
    assert abs(slope) > 0.01


def test_pure_noise_is_the_models_highest_noise_level(generator, models):
    sampling = models[0].get_model_object("model_sampling")
    with generator.training():
        levels = [generator._denoiser(generator._shape).sigma_at(time) for time in (1.0, 0.5, 0.01)]
    assert levels[0] == pytest.approx(float(sampling.sigma_max))
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] > 0


def predict(generator, scale=1.0):
    """The noise that the model predicts at one fixed point."""
    with generator.training(), torch.no_grad(), generator._scaled(scale):
        return generator.estimate(Draw((0,), (3,), (0,))).prediction


def test_lora_loads_back(generator, models):
    import comfy_extras.nodes_train

    generator.add_lora(2, 4.0, seed=0)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.005, generator=torch.Generator().manual_seed(1))
    wanted = predict(generator)
    assert float((wanted - predict(generator, 0.0)).abs().max()) > 0.1
    with torch.inference_mode():
        loader = comfy_extras.nodes_train.LoraModelLoader
        patched = loader.execute(models[0], generator.lora_state_dict("comfyui"), 1.0, False).result[0]
    fresh = type(generator)(
        patched, models[1], [conditioning(1)], latent=EMPTY, negative=conditioning(2), cfg=4.0, steps=3,
        scheduler="normal",
    )  # fmt: skip
    assert torch.allclose(predict(fresh), wanted, atol=1e-4 * float(wanted.abs().max()))
