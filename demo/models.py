"""Configurations of the demo models: real architectures, tiny sizes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderTiny, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
    T5EncoderModel,
)

from .world import IMAGE_SIZE

TEXT_WIDTH = 64


def build_vae() -> AutoencoderTiny:
    """A narrow TAESD: 112 × 112 images, 16 × 14 × 14 latents."""
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def build_transformer() -> FluxTransformer2DModel:
    """A Flux schnell of hidden size 256: image tokens of 64 channels."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
    )


def build_text_encoders(
    vocab_size: int, length: int, pad: int, eos: int, layers: int = 1
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The two text encoders that Flux expects: CLIP for the pooled vector, T5 (of `layers`) for the sequence."""
    clip = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        pad_token_id=pad,
        bos_token_id=pad,
        eos_token_id=eos,
    )
    t5 = T5Config(
        vocab_size=vocab_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=layers,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=pad,
        eos_token_id=eos,
        decoder_start_token_id=pad,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def build_critic(
    vocab_size: int, tokens: dict[str, int], text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL that sees 112 × 112 images as 8 × 8 patches.

    Args:
        tokens: maps special tokens to their ids.
        text, vision: settings of the two towers that differ.
    """
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 256,
                "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
                "tie_word_embeddings": False,
                "bos_token_id": None,
                "eos_token_id": tokens["<|im_end|>"],
                "pad_token_id": tokens["<pad>"],
                **(text or {}),
            },
            vision_config={
                "depth": 4,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_heads": 4,
                "out_hidden_size": 128,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [0, 1, 2, 3],
                **(vision or {}),
            },
            image_token_id=tokens["<|image_pad|>"],
            video_token_id=tokens["<|video_pad|>"],
            vision_start_token_id=tokens["<|vision_start|>"],
            vision_end_token_id=tokens["<|vision_end|>"],
            tie_word_embeddings=False,
        )
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, side: int = IMAGE_SIZE) -> Qwen2_5_VLProcessor:
    """The critic's processor: pictures are seen at `side` × `side`, in 8 × 8 patches."""
    size = {"shortest_edge": side * side, "longest_edge": side * side}
    kwargs = {"patch_size": side // 8, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**kwargs),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**kwargs),
        chat_template=tokenizer.chat_template,
    )
