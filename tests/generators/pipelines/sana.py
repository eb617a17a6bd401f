from __future__ import annotations

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from tiny_flux import WIDTH, WORDS, build_tokenizer
from transformers import Gemma2Config, Gemma2Model

from . import Tiny, centred

SHIFT = 3.0  # of the published models
SIDES = (8, 8, 8, 8, 8, 32)  # channels, from the picture to the latent


def build_text_encoder():
    config = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Gemma2Model(config).eval()


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = SanaTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
        ).eval()
        for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
            parameter.data.mul_(1.5)
        vae = AutoencoderDC(
            encoder_block_out_channels=SIDES,
            decoder_block_out_channels=SIDES,
            encoder_layers_per_block=(1,) * len(SIDES),
            decoder_layers_per_block=(1,) * len(SIDES),
            encoder_qkv_multiscales=((),) * len(SIDES),
            decoder_qkv_multiscales=((),) * len(SIDES),
            scaling_factor=0.41407,
        ).eval()
        text_encoder = build_text_encoder()
    centred(vae, (4, 32, 2, 2))
    # The real pipeline's is a DPM-Solver, see test_sana.py.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline = SanaPipeline(build_tokenizer(512), text_encoder, vae, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("sana", build, {"use_resolution_binning": False})]
