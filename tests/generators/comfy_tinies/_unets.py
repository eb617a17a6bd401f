"""Small UNets through ComfyUI's own loader.

ComfyUI knows UNets by their full size only, so its look at the weights is replaced; converting them from diffusers'
names, making the model and loading the weights are its own. The look itself is tested by `test_comfy_sd.py` for SD 1.x,
and not at all for SDXL. The width: ComfyUI has 32 groups of channels, and were each of one channel, normalisation
would hold every channel's mean, and with it the brightness of the picture, whatever is learned.
"""

from __future__ import annotations

from unittest import mock

import torch
from diffusers import AutoencoderTiny

WIDTHS, GROUPS = (128, 256), 32
CONFIG = {
    "use_checkpoint": False,
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "model_channels": WIDTHS[0],
    "channel_mult": [1, 2],
    "num_res_blocks": [2, 2],
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}


def load(kind, unet, dtype, heads, **config):
    """MODEL and VAE: `kind` is the class in ComfyUI's `supported_models`, `unet` is diffusers'."""
    import comfy.model_detection
    import comfy.sd
    import comfy.supported_models

    found = getattr(comfy.supported_models, kind)({**CONFIG, **config})
    found.unet_config.update(heads)  # which its class holds fixed
    state = {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}
    with (
        torch.inference_mode(),
        mock.patch.object(comfy.model_detection, "model_config_from_diffusers_unet", return_value=found),
    ):
        model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
        assert not state  # every weight has found its place
        return model, comfy.sd.VAE(sd=vae_weights())


def vae_weights():
    torch.manual_seed(3)
    state = {}
    for name, tensor in AutoencoderTiny().state_dict().items():
        side, _, number, rest = name.split(".", 3)
        state[f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = tensor
    return state
