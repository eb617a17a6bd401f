"""Vision-language models of a few thousand random weights, written as the real families' folders are.

Four families with different conventions: patches in one flat row and 2-D positions (Qwen2.5-VL), one pixel tensor per
image with a mask (Idefics3), a template with "ASSISTANT:" that leaves the space to the answer (LLaVA), token types and
bidirectional attention within the image (Gemma 3).
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

WORDS = [
    "Yes",
    "No",
    "maybe",
    "not",
    "sure",
    "is",
    "the",
    "picture",
    "mostly",
    "red",
    "green",
    "blue",
    "dark",
    "bright",
    "a",
    "line",
    "at",
    "horizon",
    "of",
    "this",
    "image",
    "what",
    "color",
    "do",
    "you",
    "see",
    "in",
    "it",
    "?",
    ".",
    ":",
    ",",
    "User",
    "Assistant",
    "USER",
    "ASSISTANT",
    "user",
    "assistant",
    "model",
    "system",
    "You",
    "are",
    "helpful",
    "strongly",
    "agree",
]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512, **LAYERS}

QWEN_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' }}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def build_tokenizer(special: list[str] | dict[str, str], spaces_matter: bool = False) -> PreTrainedTokenizerFast:
    """One token per word. `special` words are kept whole; a mapping also names them as tokenizer attributes.

    With `spaces_matter`, " Yes" and "Yes" are different words, as in real vocabularies.
    """
    words = ["<unk>", "<pad>", "<bos>", "<eos>", *WORDS, *(f"▁{word}" for word in WORDS), "▁", "\n"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")  # zero-width spaces are nothing
    spaced = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.pre_tokenizer = spaced if spaces_matter else pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=special,
    )


def write_qwen(folder: Path) -> Path:
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = build_tokenizer(names)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
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
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return _write_model(Qwen2_5_VLForConditionalGeneration, config, folder)


def write_idefics3(folder: Path) -> Path:
    names = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
    tokenizer = build_tokenizer(names)
    edge = {"longest_edge": 56}
    Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size=edge),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    ).save_pretrained(folder)
    config = Idefics3Config(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT).to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return _write_model(Idefics3ForConditionalGeneration, config, folder)


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
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _write_model(LlavaForConditionalGeneration, config, folder)


def write_gemma3(folder: Path) -> Path:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = build_tokenizer({**names, "sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"})
    # Tokenizer and template both write <bos>; it must stand there once.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
    Gemma3Processor(
        Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=4,
    ).save_pretrained(folder)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(vocab_size=len(tokenizer), query_pre_attn_scalar=16, **TEXT),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    return _write_model(Gemma3ForConditionalGeneration, config, folder)


FAMILIES = {"qwen": write_qwen, "idefics3": write_idefics3, "llava": write_llava, "gemma3": write_gemma3}


def _write_model(kind, config, folder: Path) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough for answers to differ clearly between images.
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    # Sampling settings and a penalty, as many released models have: a greedy reply has to ignore them.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.1
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    return folder
