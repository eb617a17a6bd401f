"""Configurations of the second world's models: as the first world's, for 128 × 128 pixels and longer prompts."""

from __future__ import annotations

from diffusers import AutoencoderTiny
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from .. import models, tokenizer
from .captions import PROMPT_WORDS
from .questions import all_texts
from .world import IMAGE_SIZE

VAE_WIDTH = 48
GRID = 8  # image tokens along a side
PROMPT_LENGTH = 28
T5_LAYERS = 2  # colours belong to objects, and objects to places


def build_vae() -> AutoencoderTiny:
    """A narrow TAESD: 128 × 128 images, 16 × 16 × 16 latents."""
    widths = (VAE_WIDTH,) * 4
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def prompt_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of both text encoders."""
    return tokenizer.prompt_tokenizer(PROMPT_WORDS, PROMPT_LENGTH)


def build_critic(vocab_size: int, tokens: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL that sees 128 × 128 images as 8 × 8 patches."""
    text = {"num_hidden_layers": 4}
    vision = {"hidden_size": 160, "intermediate_size": 440, "patch_size": IMAGE_SIZE // 8, "window_size": IMAGE_SIZE}
    return models.build_critic(vocab_size, tokens, text, vision)


def build_processor() -> Qwen2_5_VLProcessor:
    """The critic's processor: pictures are seen at 128 × 128."""
    return models.build_processor(tokenizer.critic_tokenizer(all_texts()), IMAGE_SIZE)
