"""Configurations of the demo models: real architectures, tiny sizes."""

from __future__ import annotations

from diffusers import AutoencoderTiny, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

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
    """A Flux schnell of hidden size 256: 49 image tokens of 64 channels."""
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


def build_text_encoders(vocab_size: int, length: int, pad: int, eos: int) -> tuple[CLIPTextModel, T5EncoderModel]:
    """The two text encoders that Flux expects: CLIP for the pooled vector, T5 for the sequence."""
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
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=pad,
        eos_token_id=eos,
        decoder_start_token_id=pad,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)
