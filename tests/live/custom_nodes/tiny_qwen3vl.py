"""For tests: ComfyUI takes a Qwen3-VL 8B file to be one of a few thousand weights (tests/tiny_clips.py)."""

from functools import partial

from comfy.text_encoders import qwen3vl

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
qwen3vl.QWEN3VL_CONFIGS["qwen3vl_8b"] = partial(qwen3vl.Qwen3VL_8BConfig, **WIDTHS, num_hidden_layers=3)
qwen3vl.QWEN3VL_VISION["qwen3vl_8b"] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "deepstack_visual_indexes": [0, 1],
}
qwen3vl.QWEN3VL_VISION_COMMON["num_heads"] = 2
NODE_CLASS_MAPPINGS = {}
