"""Qwen2.5-VL, Qwen3-VL and Qwen3.5: patches in one flat row, 2-D positions, placeholders by the image's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .shared import ENDS, GROUPED, TEXT, build_byte_tokenizer, build_tokenizer, write_model

QWEN3_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_TEMPLATE = (  # no system prompt of its own
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3_5_TEMPLATE = (  # opens a thought unless told not to, as those of 4B and more do
    "{%- macro render(content) %}{%- if content is string %}{{- content }}{%- else %}{%- for item in content %}"
    "{%- if 'image' in item or item.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in item %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}"
    "{%- for message in messages %}{%- set content = render(message.content) | trim %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- else %}{{- '<think>\n' }}{%- endif %}{%- endif %}"
)


def write_qwen(folder: Path) -> Path:
    tokenizer = build_tokenizer(TOKENS)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=size),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=14, merge_size=2, size=size),
        chat_template=QWEN_TEMPLATE,
    ).save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **ENDS, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **_ids(tokenizer),
    )
    return write_model(Qwen2_5_VLForConditionalGeneration, config, folder)


def write_qwen3(folder: Path) -> Path:
    """Its text layers take image features again (deepstack); no token begins a sequence."""
    tokenizer = build_tokenizer(TOKENS, bos=False)
    _write_qwen3_processor(tokenizer, QWEN3_TEMPLATE, folder)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    config = Qwen3VLConfig(
        text_config={**GROUPED, **ENDS, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={**QWEN3_VISION, "depth": 3, "deepstack_visual_indexes": [0, 1]},
        **_ids(tokenizer),
    )
    return write_model(Qwen3VLForConditionalGeneration, config, folder)


def write_qwen3_5(folder: Path) -> Path:
    """Layers that hand a state on from token to token, around one that sees all; rotary positions in half of a head."""
    special = [*TOKENS, "<think>", "</think>"]
    tokenizer = build_byte_tokenizer(Qwen3_5Tokenizer, special)
    _write_qwen3_processor(tokenizer, QWEN3_5_TEMPLATE, folder)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    config = Qwen3_5Config(
        text_config={
            **GROUPED,
            **ENDS,
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "rope_parameters": {**rope, "partial_rotary_factor": 0.5},
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        vision_config={**QWEN3_VISION, "depth": 2},
        **_ids(tokenizer),
    )
    # Else a token forgets all before it, its own key and query decide on a sign, and that jumps.
    factors = {"dt_bias": -4.0}
    return write_model(Qwen3_5ForConditionalGeneration, config, folder, factors, len(tokenizer) - len(special))


def _write_qwen3_processor(tokenizer: Any, template: str, folder: Path) -> None:
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 32 * 32 * 2, "longest_edge": 32 * 32 * 16}
    Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, merge_size=2, size=size, **half),
        tokenizer,
        Qwen3VLVideoProcessor(size=size, **half),
        chat_template=template,
    ).save_pretrained(folder)


def _ids(tokenizer) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}
