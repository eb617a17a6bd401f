from __future__ import annotations

import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny_flux import WIDTH, build_text_encoders, build_tokenizer

from dual_process.generators.architectures.packing import pack

from . import Tiny, centred


def build_transformer():
    transformer = ChromaTransformer2DModel(
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=WIDTH,
        approximator_layers=1,
    ).eval()
    for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
        parameter.data.mul_(1.5)
    transformer.proj_out.weight.data.mul_(4)
    return transformer


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        _, t5 = build_text_encoders()
        transformer = build_transformer()
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            norm_num_groups=4,
            layers_per_block=1,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ).eval()
    centred(vae, (4, 16, 8, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline = ChromaPipeline(scheduler, vae, t5, build_tokenizer(12), transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("chroma", build, {"max_sequence_length": 12}, pack)]
