"""Tiny models of every kind that ComfyUI's painter knows, as loaders hand them on; ComfyUI is imported inside."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from comfy_tinies import _unets, flux_2, qwen_image, stable_diffusion
from diffusers import FluxTransformer2DModel
from tiny_flux import WIDTH
from torch import nn

from dual_process.demo import strokes

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "num_layers": 2}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclass(frozen=True)
class Case:
    """A kind of MODEL, CLIP and VAE, how strokes are made with it, and what KSampler is set to."""

    build: Any
    mode: str
    options: dict[str, Any] = field(default_factory=dict)


class WordsClip:
    """A CLIP whose encodings depend on the text and nothing else, for MODELs whose text encoders are all large."""

    def __init__(self, conditioning: Any) -> None:
        self.conditioning = conditioning

    def tokenize(self, text: str, **options: Any) -> Any:
        return {"words": [[(zlib.crc32(text.encode()), 1.0)]]}

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        return self.conditioning(tokens["words"][0][0][0])


def demo() -> tuple[Any, Any, Any]:
    from dual_process.demo.comfy.models import load_models

    return load_models(strokes.WEIGHTS / "pipeline")


def flux_weights(channels: int) -> dict[str, torch.Tensor]:
    """Of a random Flux, as diffusers names them; with 384 channels it is an inpaint model, with 64 any other."""
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return {name: 1.5 * tensor.detach() for name, tensor in transformer.state_dict().items()}


def fill() -> tuple[Any, Any, Any]:
    """An inpaint model of Flux, with the demo's text encoders and VAE."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model_state_dict(flux_weights(384), model_options={"dtype": torch.float32})
    return (model, *demo()[1:])


def with_words(tiny: Any) -> tuple[Any, Any, Any]:
    model, vae = tiny.build(torch.float32)
    return model, WordsClip(tiny.conditioning), vae


def stable_diffusion_inpainting() -> tuple[Any, Any, Any]:
    """A UNet that sees a mask and the masked picture beside its four channels."""
    build_unet = stable_diffusion.build_unet

    def widened(widths: Any, groups: int) -> Any:
        unet = build_unet(widths, groups)
        unet.conv_in = nn.Conv2d(9, widths[0], 3, padding=1)
        return unet

    with mock.patch.object(stable_diffusion, "build_unet", widened), mock.patch.dict(_unets.CONFIG, in_channels=9):
        return with_words(stable_diffusion.TINIES[0])


def qwen() -> tuple[Any, Any, Any]:
    """Qwen-Image with a Qwen2.5-VL that ComfyUI has made; only its widths are in the place of the real ones."""
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.qwen_image
    import comfy.text_encoders.qwen_vl as qwen_vl

    model, vae = qwen_image.TINIES[0].build(torch.float32)
    tokenizer, encoder = comfy.text_encoders.qwen_image.QwenImageTokenizer, comfy.text_encoders.qwen_image.te()
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    whole, config = qwen_vl.Qwen2VLVisionTransformer, {**TEXT, "num_key_value_heads": 1}

    def small(hidden_size: int, **rest: Any) -> Any:
        return whole(**VISION, **rest)

    with mock.patch.object(qwen_vl, "Qwen2VLVisionTransformer", small):
        clip = comfy.sd.CLIP(target, model_options={"qwen25_7b_model_config": config, "dtype": torch.float32})
    random = torch.Generator().manual_seed(5)
    for parameter in clip.cond_stage_model.parameters():  # ComfyUI's layers are made without numbers
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation + (parameter.ndim == 1))
    return model, clip, vae


CASES = {
    "demo, by reference": Case(demo, "reference", {"steps": 1}),
    "demo, inpainting": Case(demo, "inpaint", {"steps": 2}),
    "Flux Fill": Case(fill, "inpaint", {"steps": 2, "guidance": 30.0}),
    "Stable Diffusion": Case(
        partial(with_words, stable_diffusion.TINIES[0]), "inpaint", {"steps": 2, "cfg": 4.0, "scheduler": "normal"}
    ),
    "Stable Diffusion, inpainting": Case(stable_diffusion_inpainting, "inpaint", {"steps": 2}),
    "FLUX.2": Case(partial(with_words, flux_2.TINIES[0]), "reference", {"steps": 2}),
    "Qwen-Image": Case(qwen, "inpaint", {"steps": 2}),
    "Qwen-Image, by reference": Case(qwen, "reference", {"steps": 2}),
    "Qwen-Image-Edit": Case(qwen, "qwen edit", {"steps": 1}),
    "Qwen-Image-Edit plus": Case(qwen, "qwen edit plus", {"steps": 2}),
}
