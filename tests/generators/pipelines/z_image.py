from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from tiny_flux import WIDTH, WORDS, build_tokenizer
from transformers import Qwen3Config, Qwen3Model

from . import Tiny, centred

TEMPLATE = "{% for message in messages %}a {{ message['content'] }} <eos>{% endfor %} a"
HEADS, AXES = 2, [8, 8, 8]


def build_chat_tokenizer(length=512):
    tokenizer = build_tokenizer(length)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def qwen3_config(layers=2):
    return Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=WIDTH // 2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )


def build_vae():
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def build_transformer(heads=HEADS, axes=AXES, refiners=1):
    transformer = ZImageTransformer2DModel(
        dim=heads * sum(axes),
        n_layers=2,
        n_refiner_layers=refiners,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=WIDTH,
        axes_dims=axes,
        axes_lens=[1024, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:
            torch.nn.init.normal_(parameter)  # made as zeros
    return transformer.eval()


def build(heads=HEADS):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder, transformer, vae = Qwen3Model(qwen3_config()).eval(), build_transformer(heads), build_vae()
    transformer.all_final_layer["2-1"].linear.weight.data.mul_(6)  # so that a LoRA in the blocks can be seen
    centred(vae, (4, 16, 8, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = ZImagePipeline(scheduler, vae, encoder, build_chat_tokenizer(), transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("z-image", build, {"guidance_scale": 0.0})]
