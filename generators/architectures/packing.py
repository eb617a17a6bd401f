"""Latents as tokens, one per 2 × 2 latent pixels, as in Flux and the models after it."""

from __future__ import annotations

import torch
from torch import Tensor

PATCH = 2  # latent pixels per token and side


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> tokens [B, h/2 · w/2, 4C], one per 2 × 2 latent pixels."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Tokens [B, h/2 · w/2, 4C] -> [B, C, h, w], the inverse of `pack`."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def token_positions(h: int, w: int) -> Tensor:
    """(0, row, column) of each token of an h × w latent, [h/2 · w/2, 3] float32."""
    rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
