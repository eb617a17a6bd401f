from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny_flux import WIDTH, build_text_encoders, build_tokenizer
from transformers import CLIPTextModelWithProjection

from . import Tiny, centred

HEAD = 64  # channels, which ComfyUI holds fixed, with as many heads as blocks


def build_transformer(blocks=2):
    """The first block as in 3.5 medium, with a second attention of the picture to itself."""
    return SD3Transformer2DModel(
        sample_size=16,
        num_layers=blocks,
        attention_head_dim=HEAD,
        num_attention_heads=blocks,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=HEAD * blocks,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip, t5 = build_text_encoders()
        clips = [CLIPTextModelWithProjection(clip.config).eval() for _ in range(2)]
        t5 = type(t5)(type(t5.config)(**{**t5.config.to_dict(), "d_model": 2 * WIDTH})).eval()
        transformer = build_transformer()
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
    centred(vae, (4, 16, 8, 8))
    parts = (clips[0], build_tokenizer(12), clips[1], build_tokenizer(12), t5, build_tokenizer(12))
    pipeline = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("sd-3", build, {"guidance_scale": 7.0, "max_sequence_length": 12}, learning_rate=0.02, lora=0.1)]
