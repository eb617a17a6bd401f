"""Tiny random models, as the files that ComfyUI's own loaders read and as diffusers' objects with the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from tiny_flux import build_text_encoders, build_tokenizer

from dual_process.generators import DiffusersGenerator
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.diffusers.denoising import EncodedPrompts
from dual_process.generators.settings import GeneratorSettings

SIZE = 64  # pixels
TEXT, LENGTH = 32, 5
SHIFT = {"schnell": 1.0, "dev": math.exp(1.15)}  # what ComfyUI's model sampling has for each


def build_transformer(flavour: str) -> FluxTransformer2DModel:
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        guidance_embeds=flavour == "dev",
        axes_dims_rope=(16, 56, 56),
    )
    for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
        parameter.data.mul_(1.2)
    return transformer.eval()


def build_vae() -> AutoencoderTiny:
    torch.manual_seed(4)
    return AutoencoderTiny(latent_channels=16, scaling_factor=1.0, shift_factor=0.0).eval()


def vae_file_tensors(vae: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """A TAESD under ComfyUI's names; its first decoder layer is the clamp, which has no weights."""
    state = {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    for name, tensor in vae.state_dict().items():
        side, _, number, rest = name.split(".", 3)
        index = int(number) + (side == "decoder")
        state[f"taesd_{side}.{index}.{rest}"] = tensor.contiguous()
    return state


def prompt_tensors(count: int = 2) -> EncodedPrompts:
    random = torch.Generator().manual_seed(11)
    sequence, pooled = (torch.randn(count, *shape, generator=random) for shape in ((LENGTH, TEXT), (TEXT,)))
    rows = tuple({"sequence": sequence[i : i + 1], "pooled": pooled[i : i + 1]} for i in range(count))
    return EncodedPrompts(tuple(f"prompt {i}" for i in range(count)), rows)


def conditionings(guidance: float = 3.5, prompts: EncodedPrompts | None = None) -> list[Any]:
    return [
        [[row["sequence"].clone(), {"pooled_output": row["pooled"].clone(), "guidance": guidance}]]
        for row in (prompts or prompt_tensors()).conditions
    ]


def write_files(models: Path, flavour: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """The MODEL and VAE files below ComfyUI's models folder."""
    unet, vae = models / "diffusion_models" / f"tiny-{flavour}.safetensors", models / "vae" / "tiny-vae.safetensors"
    for path in (unet, vae):
        path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in build_transformer(flavour).state_dict().items()}
    save_file(state, unet)
    save_file(vae_file_tensors(build_vae()), vae)
    return unet, vae


def diffusers_generator(flavour: str, steps: int = 4, dtype: torch.dtype = torch.float32) -> DiffusersGenerator:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT[flavour])
    settings = GeneratorSettings(height=SIZE, width=SIZE, num_inference_steps=steps)
    return DiffusersGenerator(
        FLUX,
        build_transformer(flavour).to(dtype),
        build_vae(),
        scheduler,
        prompt_tensors(),
        f"tiny-{flavour}",
        settings,
    )


def build_pipeline(flavour: str) -> FluxPipeline:
    """The same weights as a whole pipeline, with random text encoders."""
    torch.manual_seed(6)
    clip, t5 = build_text_encoders()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT[flavour])
    transformer, vae = build_transformer(flavour), build_vae()
    return FluxPipeline(scheduler, vae, clip, build_tokenizer(12), t5, build_tokenizer(12), transformer)
