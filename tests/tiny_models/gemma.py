"""Gemma 3 and 4, which have layers that see a window of keys and layers that see all, and PaliGemma."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from .shared import ENDS, GROUPED, TEXT, VISION, build_tokenizer, write_model

# Shorter than any prompt.
WINDOW = 8
WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA4_TURNS = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{- '<|turn>' + role + '\n' }}{%- if message['content'] is string -%}{{- message['content'] | trim -}}"
    "{%- elif message['content'] is sequence -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'text' -%}{{- item['text'] | trim -}}"
    "{%- elif item['type'] == 'image' -%}{{- IMAGE -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<turn|>\n' -}}{%- endfor -%}"
)
GEMMA4_E_TEMPLATE = GEMMA4_TURNS.replace("IMAGE", "'<|image|>'") + (
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}"
)
# Opens each reply with an empty thought, which a finished reply does not have.
GEMMA4_TEMPLATE = GEMMA4_TURNS.replace("IMAGE", "'\n\n<|image|>\n\n'") + (
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}"
    "{%- if not enable_thinking | default(false) -%}{{- '<|channel>thought\n<channel|>' -}}{%- endif -%}{%- endif -%}"
)


def write_gemma3(folder: Path) -> Path:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    # Tokenizer and template both write <bos>; it must stand there once.
    tokenizer = build_tokenizer({**names, "sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"}, adds_bos=True)
    Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 56, "width": 56}, do_pan_and_scan=True, pan_and_scan_min_crop_size=16),
        tokenizer,
        chat_template=GEMMA3_TEMPLATE,
        image_seq_length=4,
    ).save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(vocab_size=len(tokenizer), query_pre_attn_scalar=16, **TEXT, **WINDOWED),
        vision_config=SiglipVisionConfig(**VISION, image_size=56, patch_size=14, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    return write_model(Gemma3ForConditionalGeneration, config, folder)


def write_gemma4(folder: Path) -> Path:
    """As the 31B: image tokens see each other both ways, keys double as values in the layers that see all."""
    text = {"use_bidirectional_attention": "vision", "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    return _write_gemma4(
        folder, GEMMA4_TEMPLATE, {**WINDOWED, **text, "hidden_size_per_layer_input": 0}, {"standardize": True}
    )


def write_gemma4_e(folder: Path) -> Path:
    """As E2B: a second input to each layer, the last layers on the keys of earlier ones, causal throughout."""
    text = {
        "num_hidden_layers": 4,
        "layer_types": WINDOWED["layer_types"] * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 8,
    }
    return _write_gemma4(folder, GEMMA4_E_TEMPLATE, {**WINDOWED, **text}, {"use_clipped_linears": True})


def _write_gemma4(folder: Path, template: str, text: dict, vision: dict) -> Path:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    audio = {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    turns = {"sot_token": "<|turn>", "eot_token": "<turn|>", "soc_token": "<|channel>", "eoc_token": "<channel|>"}
    tokenizer = build_tokenizer({**names, **audio, **turns}, adds_bos=True)
    # 70 tokens are the fewest that the image processor takes.
    sizes = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(**sizes),
        tokenizer,
        Gemma4VideoProcessor(**sizes),
        chat_template=template,
        image_seq_length=70,
    ).save_pretrained(folder)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in {**names, **audio}.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    config = Gemma4Config(
        text_config={
            **GROUPED,
            **ENDS,
            "vocab_size": len(tokenizer),
            "vocab_size_per_layer_input": len(tokenizer),
            "global_head_dim": 16,
            "final_logit_softcapping": 30.0,
            **text,
        },
        vision_config={
            **VISION,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "position_embedding_size": 256,
            **vision,
        },
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    # Its attention has no scale of its own; at 1 these random models jump from one patch to the next.
    return write_model(Gemma4ForConditionalGeneration, config, folder, {"q_norm.weight": 0.25})


def write_paligemma(folder: Path) -> Path:
    """No chat template: a prefix that is seen both ways, which the processor ends, and an answer behind it."""
    tokenizer = build_tokenizer([], spaces_matter=True, pairs=True)
    PaliGemmaProcessor(
        SiglipImageProcessor(
            size={"height": 56, "width": 56}, image_seq_length=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer,
    ).save_pretrained(folder)  # adds "<image>" and a thousand words for places
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **GROUPED, **ENDS, "num_key_value_heads": 1, "vocab_size": len(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tokenizer),
    )
    # Else the last token's own embedding outweighs all that the layers add, and every reply repeats it.
    return write_model(PaliGemmaForConditionalGeneration, config, folder, {"embed_tokens.weight": 0.25})
