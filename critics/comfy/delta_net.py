# pyright: reportMissingImports=false
"""ComfyUI's gated delta net over several prompts that share a beginning: each rest goes on from the state behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.text_encoders.qwen35 import torch_chunk_gated_delta_rule
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence


def branched(net: Any, lengths: Sequence[int], x: Tensor, **_: Any) -> tuple[Tensor, None]:
    """The forward of a `GatedDeltaNet`, of x [1, L, D]: the beginning and the rests, which have these lengths."""
    beginning, *rests = x.split(list(lengths), dim=1)
    first, state = _mix(net, beginning)
    tail = beginning[:, 1 - net.conv_kernel_size :].expand(len(rests), -1, -1)  # what the convolution still sees of it
    filled = pad_sequence([rest[0] for rest in rests], batch_first=True)  # behind all that counts
    state = state.expand(len(rests), -1, -1, -1)
    others = _mix(net, torch.cat([tail, filled], dim=1), tail.shape[1], state)[0]
    rows = [row[None, : rest.shape[1]] for row, rest in zip(others, rests, strict=True)]
    return torch.cat([first, *rows], dim=1), None


def _mix(net: Any, x: Tensor, known: int = 0, state: Tensor | None = None) -> tuple[Tensor, Any]:
    """What the net makes of x [B, L, D] without its first `known` tokens, which are in the state, and the new state."""
    mixed = F.silu(net.conv1d(net.in_proj_qkv(x).transpose(1, 2))[:, :, known : x.shape[1]]).transpose(1, 2)
    x = x[:, known:]
    query, key, value = mixed.split([net.key_dim, net.key_dim, net.value_dim], dim=-1)
    repeats = net.num_value_heads // net.num_key_heads
    query, key = (part.unflatten(-1, (-1, net.key_head_dim)).repeat_interleave(repeats, dim=2) for part in (query, key))
    out, after = torch_chunk_gated_delta_rule(
        query,
        key,
        value.unflatten(-1, (-1, net.value_head_dim)),
        g=-net.A_log.float().exp() * F.softplus(net.in_proj_a(x).float() + net.dt_bias.float()),
        beta=net.in_proj_b(x).sigmoid(),
        initial_state=state,
        output_final_state=True,
    )
    gate = net.in_proj_z(x).reshape(-1, net.value_head_dim)
    out = net.norm(out.reshape(-1, net.value_head_dim), gate)
    return net.out_proj(out.view(*x.shape[:2], -1)), after
