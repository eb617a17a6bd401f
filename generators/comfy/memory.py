# pyright: reportMissingImports=false
"""How much memory a training step takes beside the weights: ComfyUI's own estimates, scaled to what autograd keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management

# ComfyUI estimates the peak of a pass without gradient, so these are multiples of it. Counted as the tensors that
# autograd saves, with our LoRA's inputs in float32: Flux.1 at 1024 × 1024 in bfloat16, and the decoder of its VAE.
NETWORK_CHECKPOINTED = 3.0  # the input of every block, and all of the one that is computed again
NETWORK = 50.0  # all of every block
DECODER = 2.7


def training_memory(model: Any, vae: Any, shape: Sequence[int], batch: int, passes: int, checkpointing: bool) -> int:
    """Bytes on the model's device that the graph of one step takes.

    Args:
        model, vae: ModelPatcher and VAE of ComfyUI; a VAE on another device counts nothing.
        shape: of one latent, [1, C, h, w] or [1, C, 1, h, w].
        batch: pictures of a step.
        passes: of the network for each picture, 2 with classifier-free guidance.
        checkpointing: whether the network's blocks are computed again in the backward pass.
    """
    factor = NETWORK_CHECKPOINTED if checkpointing else NETWORK
    network = factor * model.memory_required([batch * passes, *shape[1:]])
    if vae.device != model.load_device:
        return int(network)
    return int(network + DECODER * batch * vae.memory_used_decode(tuple(shape), vae.vae_dtype))


def too_large(model: Any) -> bool:
    """Whether a MODEL's weights do not fit into its device's memory, so that they can only pass through it."""
    device = model.load_device
    if comfy.model_management.is_device_cpu(device):
        return False
    room = comfy.model_management.get_total_memory(device) - comfy.model_management.minimum_inference_memory()
    return model.model_size() > room
