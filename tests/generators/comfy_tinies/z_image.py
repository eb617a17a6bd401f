from __future__ import annotations

import torch
from comfy_models import build_vae, vae_file_tensors
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from pipelines.z_image import build_transformer
from tiny_flux import WIDTH

from . import ComfyTiny

# ComfyUI tells Z-Image by a width of 3840, at which one block has 177 million weights. What it then sets is written out
# here for a width of 256, the least that its modulation takes; only this choice of the configuration goes untested.
HEADS, AXES = 2, [32, 48, 48]
SETTINGS = {
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "axes_dims": AXES,
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "multiple_of": 1,  # of the feed-forward's width, which at 3840 needs no rounding
}


def transformer():
    """In diffusers; its time embedding is as narrow as ComfyUI makes it at this width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        found = build_transformer(HEADS, AXES, refiners=2)
        found.t_embedder = TimestepEmbedder(256, mid_size=256)
        for name, parameter in found.named_parameters():  # gates and scales that matter
            if "adaLN" in name or "linear" in name:
                parameter.data.mul_(2)
    return found.requires_grad_(False).eval()


def build(dtype):
    import comfy.model_detection as detection
    import comfy.model_patcher
    import comfy.sd
    from comfy.supported_models import ZImage

    with torch.inference_mode():
        state = detection.convert_diffusers_mmdit(
            {n: t.detach().clone() for n, t in transformer().state_dict().items()}
        )
        config = ZImage({**detection.detect_unet_config(state, ""), **SETTINGS})
        config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
        model = config.get_model(state, "")
        patcher = comfy.model_patcher.CoreModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        model.load_model_weights(state, "", assign=patcher.is_dynamic())
        return patcher, comfy.sd.VAE(sd=vae_file_tensors(build_vae()))


def conditioning(number):
    random = torch.Generator().manual_seed(number)
    return [[torch.randn(1, 5 + number, WIDTH, generator=random), {}]]


TINIES = [ComfyTiny("z-image", build, conditioning, (1, 16, 8, 8), {"steps": 3})]
