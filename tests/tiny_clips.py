"""A random Qwen3-VL so small that ComfyUI loads it only where its configuration is shrunk as well.

See `load_qwen` in tests/critics_comfy and tests/live/custom_nodes. The vocabulary is the real one, for its token ids.
"""

from __future__ import annotations

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
QWEN_VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "deepstack_visual_indexes": [0, 1]}
QWEN_END = 151645


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
