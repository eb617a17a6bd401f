from __future__ import annotations

import torch
from pipelines.stable_diffusion_xl import SIZES, build_unet
from tiny_flux import WIDTH

from . import ComfyTiny
from ._unets import GROUPS, WIDTHS, load


def build(dtype):
    torch.manual_seed(7)
    return load(
        "SDXL",
        build_unet(WIDTHS, GROUPS),
        dtype,
        {"num_head_channels": 16},
        num_classes="sequential",
        adm_in_channels=WIDTH + 6 * SIZES,
        context_dim=2 * WIDTH,
        transformer_depth=[1, 1, 2, 2],
        transformer_depth_middle=2,
        transformer_depth_output=[1, 1, 1, 2, 2, 2],
        use_linear_in_transformer=True,
    )


def conditioning(number):
    random = torch.Generator().manual_seed(number)
    sequence, pooled = (torch.randn(1, *shape, generator=random) for shape in ((77, 2 * WIDTH), (WIDTH,)))
    return [[sequence, {"pooled_output": pooled}]]


TINIES = [ComfyTiny("sd-xl", build, conditioning, (1, 4, 8, 8), {"cfg": 4.0, "scheduler": "normal"})]
