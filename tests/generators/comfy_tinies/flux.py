from __future__ import annotations

from functools import partial

import torch
from comfy_models import build_transformer, build_vae, conditionings, vae_file_tensors

from . import ComfyTiny


def build(flavour, dtype):
    import comfy.sd

    with torch.inference_mode():
        state = {name: t.detach().clone() for name, t in build_transformer(flavour).state_dict().items()}
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        return model, comfy.sd.VAE(sd=vae_file_tensors(build_vae()))


TINIES = [
    ComfyTiny(
        f"flux-1-{flavour}",
        partial(build, flavour),
        lambda number: conditionings()[number],
        (1, 16, 8, 8),
        {"steps": 3},
    )
    for flavour in ("schnell", "dev")
]
