from __future__ import annotations

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tiny_flux import WIDTH, build_text_encoders, build_tokenizer
from transformers import CLIPTextModelWithProjection

from . import Tiny, centred

SIZES = 256  # channels of each of the six numbers of a picture's size


def build_unet(widths=(8, 16), groups=4):
    return UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=2,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=groups,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZES,
        projection_class_embeddings_input_dim=WIDTH + 6 * SIZES,
    ).eval()


def build(widths=(8, 16)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip, _ = build_text_encoders()
        clip_2 = CLIPTextModelWithProjection(clip.config).eval()
        unet = build_unet(widths)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
            scaling_factor=0.13025,
        ).eval()
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    centred(vae, (4, 4, 8, 8))
    tokenizers = build_tokenizer(12), build_tokenizer(12)
    pipeline = StableDiffusionXLPipeline(vae, clip, clip_2, *tokenizers, unet, scheduler, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("sd-xl", build, {"guidance_scale": 5.0}, learning_rate=0.02, margin=0.04, lora=0.1)]
