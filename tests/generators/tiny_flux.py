"""Tiny random Flux pipelines, schnell and dev, with real classes throughout."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = ["<pad>", "<eos>", "<unk>", "a", "red", "blue", "house", "tree", "sea", "with", "sky"]
PROMPTS = ["a red house", "a tree with blue sky"]
WIDTH = 32


def build_tokenizer(length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=length
    )


def build_transformer(guidance: bool, wider: int = 1) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16 * wider,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4 * wider, 6 * wider, 6 * wider),
    )


def build_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=0.8,
        shift_factor=0.1,
    )


def build_text_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    t5 = T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2, pad_token_id=0)
    return CLIPTextModel(clip).eval(), T5EncoderModel(t5).eval()


def build_pipeline(flavour: str, wider: int = 1) -> FluxPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip, t5 = build_text_encoders()
        transformer, vae = build_transformer(flavour == "dev", wider).eval(), build_vae().eval()
        for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
            parameter.data.mul_(1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if flavour == "dev" else 1.0, use_dynamic_shifting=flavour == "dev"
    )
    pipeline = FluxPipeline(scheduler, vae, clip, build_tokenizer(12), t5, build_tokenizer(12), transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
