from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny_flux import WIDTH, WORDS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dual_process.generators.architectures.packing import pack

from . import Tiny, centred

TOKENS = [*WORDS, "\n", "<|im_start|>", "<|im_end|>"]


def build_tokenizer():
    """As many tokens before a prompt as the real one makes: the pipeline cuts off 34."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]+"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def build_text_encoder():
    text = {
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "default", "mrope_section": [2, 2, 4]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def build_transformer():
    transformer = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    ).eval()
    for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
        parameter.data.mul_(1.5)
    transformer.proj_out.weight.data.mul_(4)
    return transformer


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformer = build_transformer()
        vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
        text_encoder = build_text_encoder()
    unclamped = SimpleNamespace(
        decoder=vae.decoder, decode=lambda latents, return_dict: (vae.decoder(vae.post_quant_conv(latents)),)
    )
    centred(unclamped, (4, 16, 1, 8, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    pipeline = QwenImagePipeline(scheduler, vae, text_encoder, build_tokenizer(), transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [Tiny("qwen-image", build, {"negative_prompt": " ", "true_cfg_scale": 4.0}, pack, size=32)]
