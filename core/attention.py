"""Which of PyTorch's kernels may compute attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def attention_with_gradients() -> Iterator[None]:
    """While entered, cuDNN computes no attention; make the backward pass inside, too, since it may compute it again.

    PyTorch 2.11 prefers it on Hopper cards, where its gradients were not numbers, or the program broke off with an
    illegal memory access (Flux in bfloat16 on an H200). PyTorch's other kernels take its place. ComfyUI asks for
    kernels itself, cuDNN's after flash attention.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
