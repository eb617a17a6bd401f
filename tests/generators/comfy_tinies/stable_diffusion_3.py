from __future__ import annotations

import torch
from comfy_models import build_vae, vae_file_tensors
from pipelines.stable_diffusion_3 import build_transformer
from tiny_flux import WIDTH

from . import ComfyTiny


def build(dtype):
    import comfy.sd

    torch.manual_seed(7)
    state = {name: tensor.detach().clone() for name, tensor in build_transformer().state_dict().items()}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        return model, comfy.sd.VAE(sd=vae_file_tensors(build_vae()))


def conditioning(number):
    random = torch.Generator().manual_seed(number)
    sequence, pooled = (torch.randn(1, *shape, generator=random) for shape in ((20, 2 * WIDTH), (2 * WIDTH,)))
    return [[sequence, {"pooled_output": pooled}]]


TINIES = [ComfyTiny("sd-3", build, conditioning, (1, 16, 8, 8), {"cfg": 4.0})]
