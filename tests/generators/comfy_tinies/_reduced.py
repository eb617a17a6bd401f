"""Models of smaller widths than ComfyUI's detection allows; all else is its own loader's doing."""

from __future__ import annotations

from unittest import mock

import torch


def load_reduced(weights, dtype, **widths):
    """MODEL of weights under their native names, with these entries of the configuration that ComfyUI detects."""
    import comfy.model_detection
    import comfy.sd

    detect = comfy.model_detection.detect_unet_config

    def detect_reduced(*args, **kwargs):
        return {**detect(*args, **kwargs), **widths}

    state = {name: tensor.detach().clone() for name, tensor in weights.items()}
    with mock.patch.object(comfy.model_detection, "detect_unet_config", detect_reduced), torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
