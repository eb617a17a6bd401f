"""Idefics2, Idefics3 and SmolVLM: one pixel tensor per sample with a mask, and image splitting to switch off."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from .shared import ENDS, GROUPED, TEXT, VISION, build_tokenizer, write_model

TURNS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TOKENS = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]


def write_idefics2(folder: Path) -> Path:
    """Images of any shape, resampled to a fixed number of tokens; a window of keys in the text model."""
    tokenizer = build_tokenizer(
        ["<fake_token_around_image>", "<image>", "<end_of_utterance>"], spaces_matter=True, adds_bos=True
    )
    Idefics2Processor(
        Idefics2ImageProcessor(
            size={"shortest_edge": 28, "longest_edge": 70},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            do_image_splitting=True,
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=TURNS,
    ).save_pretrained(folder)
    config = Idefics2Config(
        text_config={"model_type": "mistral", **GROUPED, **ENDS, "vocab_size": len(tokenizer), "sliding_window": 16},
        vision_config={**VISION, "image_size": 70, "patch_size": 14},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return write_model(Idefics2ForConditionalGeneration, config, folder)


def write_idefics3(folder: Path) -> Path:
    tokenizer = build_tokenizer(TOKENS)
    Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}),
        tokenizer,
        image_seq_len=4,
        chat_template="<|im_start|>" + TURNS,
    ).save_pretrained(folder)
    config = Idefics3Config(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT).to_dict(),
        vision_config={**VISION, "image_size": 56, "patch_size": 14},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return write_model(Idefics3ForConditionalGeneration, config, folder)


def write_smolvlm(folder: Path) -> Path:
    if processing_smolvlm.num2words is None:  # the processor demands the package, which only videos need
        processing_smolvlm.num2words = str
    tokenizer = build_tokenizer(
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            "start_of_turn_token": "<|im_start|>",
        },
        spaces_matter=True,
    )
    sizes = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    SmolVLMProcessor(
        SmolVLMImageProcessor(do_image_splitting=True, **sizes, **half),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, **half),
        image_seq_len=4,
        chat_template="<|im_start|>" + TURNS,
    ).save_pretrained(folder)
    config = SmolVLMConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **{**GROUPED, "num_key_value_heads": 1}, **ENDS).to_dict(),
        vision_config={**VISION, "image_size": 56, "patch_size": 14},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return write_model(SmolVLMForConditionalGeneration, config, folder)
