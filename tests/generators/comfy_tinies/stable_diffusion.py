from __future__ import annotations

import torch
from pipelines.stable_diffusion import build_unet
from tiny_flux import WIDTH

from . import ComfyTiny
from ._unets import GROUPS, WIDTHS, load


def build(dtype):
    torch.manual_seed(7)
    return load(
        "SD15",
        build_unet(WIDTHS, GROUPS),
        dtype,
        {"num_heads": 2},
        adm_in_channels=None,
        context_dim=WIDTH,
        transformer_depth=[1, 1, 0, 0],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 0, 0, 0],
        use_linear_in_transformer=False,
    )


def conditioning(number):
    return [[torch.randn(1, 77, WIDTH, generator=torch.Generator().manual_seed(number)), {}]]


TINIES = [ComfyTiny("sd-1", build, conditioning, (1, 4, 8, 8), {"cfg": 4.0, "scheduler": "normal"})]
