from __future__ import annotations

import torch
from pipelines.qwen_image import build_transformer
from tiny_flux import WIDTH

from . import ComfyTiny
from ._reduced import load_reduced


def vae_weights():
    """Of the real VAE, which is Wan's for videos, with few channels."""
    import comfy.ldm.wan.vae

    torch.manual_seed(4)
    vae = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    for name, parameter in vae.named_parameters():  # ComfyUI's layers are made without numbers
        if parameter.ndim > 1 and "gamma" not in name:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.constant_(parameter, float("gamma" in name))
    return {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}


def build(dtype):
    import comfy.sd

    torch.manual_seed(7)
    # Detection finds the depth in the weights, and takes the widths for those of the published model.
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 6, 6)}
    model = load_reduced(build_transformer().state_dict(), dtype, joint_attention_dim=WIDTH, **heads)
    with torch.inference_mode():
        return model, comfy.sd.VAE(sd=vae_weights())


def conditioning(number):
    return [[torch.randn(1, 5 + 3 * number, WIDTH, generator=torch.Generator().manual_seed(number)), {}]]


TINIES = [ComfyTiny("qwen-image", build, conditioning, (1, 16, 1, 8, 8), {"cfg": 2.5})]
