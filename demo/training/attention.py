"""The vision tower's attention over a batch of pictures of one size in one call, which trains several times as fast."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)


def attend_at_once(model: nn.Module) -> None:
    """From here on, the vision tower takes pictures of one size, whose attention windows are the whole picture."""
    for module in model.modules():
        if isinstance(module, Qwen2_5_VLVisionAttention):
            module.forward = partial(_attend, module)


def _attend(
    attention: Any, x: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    pictures = len(cu_seqlens) - 1
    query, key, value = attention.qkv(x).reshape(len(x), 3, attention.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)

    def heads(t: Tensor) -> Tensor:  # [pictures · N, heads, d] → [pictures, heads, N, d]
        return t.unflatten(0, (pictures, -1)).transpose(1, 2)

    # Written out: the fused kernel's backward pass takes most of a step's time in bfloat16 on the CPU.
    share = (heads(query) @ heads(key).mT * attention.scaling).softmax(dim=-1)
    return attention.proj((share @ heads(value)).transpose(1, 2).reshape(len(x), -1))
