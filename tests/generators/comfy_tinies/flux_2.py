from __future__ import annotations

from functools import partial

import torch
from diffusers import AutoencoderKLFlux2
from pipelines.flux_2 import build_transformer

from dual_process.generators.architectures.flux_2 import BLOCKS
from dual_process.generators.architectures.layers import splits

from . import ComfyTiny

TEXT, LENGTH = 96, 512  # ComfyUI fills shorter sequences up with zeros, which a LoRA would move all at once
OUTSIDE = {  # of the blocks, diffusers' names -> Black Forest Labs' own
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
NORMS = {
    "norm_q": "img_attn.norm.query_norm",
    "norm_k": "img_attn.norm.key_norm",
    "norm_added_q": "txt_attn.norm.query_norm",
    "norm_added_k": "txt_attn.norm.key_norm",
}


def transformer(flavour):
    """In diffusers; the head's width is fixed by ComfyUI."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        found = build_transformer(flavour == "dev", heads=1, axes=(32, 32, 32, 32), single_layers=1)
    for parameter in found.parameters():  # larger weights, so that layers and prompts matter
        parameter.data.mul_(1.5)
    found.proj_out.weight.data.mul_(4)  # so that a LoRA in the blocks can be seen
    return found.requires_grad_(False)


def native(state):
    """A transformer's weights under its authors' names; ComfyUI does not read diffusers' of FLUX.2."""
    found = {f"{name}.weight": torch.cat([state[f"{p}.weight"] for p in parts]) for name, parts in splits(
        BLOCKS, (name.removesuffix(".weight") for name in state), "diffusers")}  # fmt: skip
    found |= {f"{new}.weight": state[f"{old}.weight"] for old, new in OUTSIDE.items() if f"{old}.weight" in state}
    for name, tensor in state.items():
        block, number, _, norm = (*name.split("."), "", "", "")[:4]
        if block == "transformer_blocks" and norm in NORMS:
            found[f"double_blocks.{number}.{NORMS[norm]}.weight"] = tensor
        elif block == "single_transformer_blocks" and norm in NORMS:
            found[f"single_blocks.{number}.{NORMS[norm].removeprefix('img_attn.')}.weight"] = tensor
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    return {**found, "final_layer.adaLN_modulation.1.weight": torch.cat([shift, scale])}


def vae_weights():
    """A decoder as narrow as ComfyUI's 32 groups of channels allow, if they are not to fix each channel's mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        vae = AutoencoderKLFlux2(block_out_channels=(32,) * 4, decoder_block_out_channels=(64, 128, 256, 256))
        vae.bn.running_mean.normal_(std=0.1)
        vae.bn.running_var.uniform_(0.5, 2.0)
    state = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if "encoder" not in name}


def build(flavour, dtype):
    import comfy.sd

    with torch.inference_mode():
        state = native({name: t.detach().clone() for name, t in transformer(flavour).state_dict().items()})
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        return model, comfy.sd.VAE(sd=vae_weights(), dtype=torch.float32)


def conditioning(number):
    random = torch.Generator().manual_seed(number)
    return [[torch.randn(1, LENGTH, TEXT, generator=random), {"guidance": 4.0}]]


TINIES = [
    ComfyTiny(f"flux-2-{flavour}", partial(build, flavour), conditioning, (1, 128, 2, 2), {"steps": 3})
    for flavour in ("klein", "dev")
]
