"""Vision-language models of a few thousand random weights, written as the real families' folders are.

Each has its family's special tokens, chat template, processor and image processor (with the tiling that released
folders switch on), and a model in which wrong masks or positions show: grouped key-value heads, and sliding windows
shorter than the prompt where the family has them.
"""

from __future__ import annotations

from .gemma import write_gemma3, write_gemma4, write_gemma4_e, write_paligemma
from .idefics import write_idefics2, write_idefics3, write_smolvlm
from .llava import write_internvl, write_llava, write_mistral3, write_pixtral
from .qwen import write_qwen, write_qwen3, write_qwen3_5

FAMILIES = {
    "qwen": write_qwen,
    "qwen3": write_qwen3,
    "qwen3_5": write_qwen3_5,
    "idefics2": write_idefics2,
    "idefics3": write_idefics3,
    "smolvlm": write_smolvlm,
    "llava": write_llava,
    "pixtral": write_pixtral,
    "mistral3": write_mistral3,
    "internvl": write_internvl,
    "gemma3": write_gemma3,
    "gemma4": write_gemma4,
    "gemma4_e": write_gemma4_e,
    "paligemma": write_paligemma,
}
