"""The demo critic after a lesson in comparing: it also answers about a picture beside the judged one."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import Qwen2_5_VLProcessor

from ..critics import TransformersCritic
from ..critics.loading import load_model
from . import WEIGHTS
from .models import build_processor
from .questions import all_texts, comparing_texts
from .tokenizer import critic_tokenizer


def comparing_processor() -> Qwen2_5_VLProcessor:
    """The demo critic's processor, with the words of the lesson behind those that it knew."""
    return build_processor(critic_tokenizer(all_texts(), comparing_texts()))


def load_comparing_critic(folder: str | Path = WEIGHTS, trained: bool = True) -> TransformersCritic:
    """The critic of `demo.load` with the adapter beside it merged in, float32 on the CPU.

    It has learnt `STYLE` (Yes or No) and `LIKENESS` (1 to 5) about one reference of the same world.

    Args:
        folder: where `critic/` and `comparing/` lie.
        trained: False for one that knows the words, but has not had the lesson: to see what the lesson does.
    """
    processor = comparing_processor()
    model = load_model(Path(folder) / "critic", torch.device("cpu"), torch.float32, None)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    if trained:
        model = PeftModel.from_pretrained(model, Path(folder) / "comparing").merge_and_unload()
    return TransformersCritic(model.eval().requires_grad_(False), processor, "the comparing demo critic")
