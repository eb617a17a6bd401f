"""LLaVA 1.5, Pixtral (LLaVA's model class around another vision tower) and InternVL."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
)

from .shared import ENDS, GROUPED, TEXT, VISION, build_tokenizer, write_model

LLAVA_TEMPLATE = (  # leaves the space before the answer to the answer
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PIXTRAL_TEMPLATE = (  # takes the assistant's words as a string only
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{{- '[INST]' }}"
    "{%- if message['content'] is not string %}{%- for chunk in message['content'] %}"
    "{%- if chunk['type'] == 'text' %}{{- chunk['text'] }}{%- elif chunk['type'] == 'image' %}{{- '[IMG]' }}"
    "{%- else %}{{- raise_exception('Unrecognized content type!') }}{%- endif %}{%- endfor %}"
    "{%- else %}{{- message['content'] }}{%- endif %}{{- '[/INST]' }}"
    "{%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}{%- endfor %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_llava(folder: Path) -> Path:
    tokenizer = build_tokenizer(["<image>"], spaces_matter=True)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=CLIPVisionConfig(**VISION, image_size=56, patch_size=14),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return write_model(LlavaForConditionalGeneration, config, folder)


def write_pixtral(folder: Path) -> Path:
    """As mistral-community/pixtral-12b: images of any shape, a token at the end of each row of patches."""
    tokenizer = _write_pixtral_processor(folder, edge=64, patch_size=16)
    config = LlavaConfig(
        text_config=_mistral(len(tokenizer)),
        vision_config=_pixtral(image_size=64, patch_size=16),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return write_model(LlavaForConditionalGeneration, config, folder)


def write_mistral3(folder: Path) -> Path:
    """As Mistral Small 3.1: four patches are one token, and the image's size a multiple of two patches."""
    tokenizer = _write_pixtral_processor(folder, edge=84, patch_size=14, spatial_merge_size=2)
    config = Mistral3Config(
        text_config=_mistral(len(tokenizer)),
        vision_config=_pixtral(image_size=84, patch_size=14),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return write_model(Mistral3ForConditionalGeneration, config, folder)


def _write_pixtral_processor(folder: Path, edge: int, patch_size: int, spatial_merge_size: int = 1):
    tokenizer = build_tokenizer(["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"], True, adds_bos=True)
    PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": edge}, patch_size={"height": patch_size, "width": patch_size}),
        tokenizer,
        patch_size=patch_size,
        spatial_merge_size=spatial_merge_size,
        chat_template=PIXTRAL_TEMPLATE,
    ).save_pretrained(folder)
    return tokenizer


def _mistral(words: int) -> dict:
    return {"model_type": "mistral", **GROUPED, **ENDS, "vocab_size": words, "sliding_window": None}


def _pixtral(image_size: int, patch_size: int) -> dict:
    return {
        "model_type": "pixtral",
        **VISION,
        "image_size": image_size,
        "patch_size": patch_size,
        "rope_parameters": {"rope_theta": 10000.0},
    }


def write_internvl(folder: Path) -> Path:
    """Its processor cuts images into tiles unless told otherwise in the call; no token begins a sequence."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = build_tokenizer(
        {**names, "video_token": "<video>", "start_of_turn_token": "<|im_start|>", "end_of_turn_token": "<|im_end|>"},
        bos=False,
    )
    size = {"height": 56, "width": 56}
    InternVLProcessor(
        GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=12),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    ).save_pretrained(folder)
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **GROUPED, **ENDS, "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": 56, "patch_size": 14, "use_qk_norm": True},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return write_model(InternVLForConditionalGeneration, config, folder)
