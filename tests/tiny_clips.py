"""A random Qwen3-VL and Qwen3.5, so small that ComfyUI loads them only where its configuration is shrunk as well.

See `load_qwen` in tests/critics_comfy and tests/live/custom_nodes. The vocabulary is the real one, for its token ids.
"""

from __future__ import annotations

import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
QWEN_VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "deepstack_visual_indexes": [0, 1]}
QWEN_END = 151645
QWEN35_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
QWEN35_HEADS = {"head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
QWEN35_HEADS |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
QWEN35_MROPE = [2, 1, 1]
QWEN35_ENDS = [248044, 248046]


def build_qwen() -> Qwen3VLForConditionalGeneration:
    rope = {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_type": "default"}
    text = {**WIDTHS, "num_hidden_layers": 3, "vocab_size": 151936, "head_dim": 128, "rms_norm_eps": 1e-6}
    vision = {**QWEN_VISION, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 2304}
    config = Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:  # larger weights, so that every layer and pixel matters
            parameter.data.mul_(8)
    model.generation_config.eos_token_id = [151643, QWEN_END]
    return model.eval()


def build_qwen35(tied: bool = True) -> Qwen3_5ForConditionalGeneration:
    """Three layers of four have a state; up to 4B, the embeddings are the language head as well."""
    rope = {"rope_theta": 1e7, "mrope_section": QWEN35_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = {**WIDTHS, **QWEN35_HEADS, "num_hidden_layers": 4, "vocab_size": 248320, "rope_parameters": rope}
    vision = {**QWEN35_VISION, "out_hidden_size": 32, "num_position_embeddings": 2304}
    config = Qwen3_5Config(
        text_config={**text, "tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen3_5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
        elif name.endswith("dt_bias"):
            parameter.data.fill_(-4)  # or each token would forget all before it
    model.generation_config.eos_token_id = QWEN35_ENDS
    return model.eval()
