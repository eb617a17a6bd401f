from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_flux import WIDTH, build_text_encoders, build_tokenizer

from . import Tiny, centred


def build_unet(widths=(8, 16), groups=4):
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=groups,
    ).eval()


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip, _ = build_text_encoders()
        unet = build_unet()
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False,
    )  # fmt: skip
    centred(vae.eval(), (4, 4, 8, 8))
    pipeline = StableDiffusionPipeline(
        vae.eval(), clip, build_tokenizer(12), unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("sd-1", build, {"guidance_scale": 7.5})]
