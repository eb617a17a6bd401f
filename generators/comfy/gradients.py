# pyright: reportMissingImports=false
"""Training through a ComfyUI diffusion model's own weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.flux.layers
import comfy.ldm.flux.model
import comfy.model_management
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ...comfy_host.weights import overridden_forward, placed, plain_attributes, plain_weights
from .blocks import blocks


@contextmanager
def leave_inference_mode(grad: bool = True) -> Iterator[None]:
    """What is made inside may take part in autograd; ComfyUI runs nodes in inference mode."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


@contextmanager
def trainable_through(modules: Iterable[nn.Module], latent_format: Any) -> Iterator[None]:
    """While entered, the modules' parameters and buffers are frozen plain tensors over the same memory.

    So are the means and deviations of latents that some formats hold, such as Wan's.
    """
    weights = [weight for module in modules for weight in plain_weights(module)]
    with placed([*weights, *plain_attributes(latent_format)]):
        yield


@contextmanager
def differentiable(
    model: nn.Module,
    gradient_checkpointing: bool,
    trained: Collection[nn.Module] | None = None,
    parts: Sequence[nn.Module] | None = None,
) -> Iterator[None]:
    """While entered, backward passes through a ComfyUI diffusion model are right, see docs/architecture.md.

    ComfyUI adds residuals in place, which overwrites what autograd has saved. Flux gets a copy where it matters;
    any other architecture runs under autograd's own copy-on-write, which costs about a fifth more time. With gradient
    checkpointing, a backward pass has to be made by `backward()` rather than `torch.autograd.grad`. It may be made when
    this is entered again.

    Args:
        gradient_checkpointing: whether blocks are computed again in the backward pass.
        trained: the layers that a LoRA changes; a block before the first of them keeps no graph. None: any may be.
        parts: those that are computed again, where it is not the blocks that hold attention.
    """
    layers = {*(trained or ())}
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True  # chooses operations that have a backward pass
    try:
        with ExitStack() as stack:
            if isinstance(model, comfy.ldm.flux.model.Flux):
                for module in model.modules():
                    if isinstance(
                        module, comfy.ldm.flux.layers.DoubleStreamBlock | comfy.ldm.flux.layers.SingleStreamBlock
                    ):
                        stack.enter_context(_copy_norm_inputs(module))
                        if gradient_checkpointing:
                            stack.enter_context(_checkpointed(module))
            else:
                saved = stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
                saved.clear = lambda: None  # what a graph has saved is dropped with the graph, which may be kept
                if gradient_checkpointing:
                    for block in blocks(model).values() if parts is None else parts:
                        has_lora = trained is None or any(module in layers for module in block.modules())
                        stack.enter_context(_recomputed(block, has_lora))
            yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _copy_norm_inputs(block: nn.Module) -> Iterator[None]:
    """The normalisations save their input, to which the block then adds in place."""
    names = ("img_norm1", "img_norm2", "txt_norm1", "txt_norm2", "pre_norm")
    norms = [getattr(block, name) for name in names if hasattr(block, name)]
    handles = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:])) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checkpointed(block: nn.Module) -> Iterator[None]:
    """Recomputes the block in the backward pass, from inputs that the in-place additions have not touched."""
    forward = block.forward
    signature = inspect.signature(forward)

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        given["transformer_options"] = dict(given["transformer_options"])  # the model changes its own block by block
        names = [name for name, value in given.items() if isinstance(value, Tensor)]

        def run(*tensors: Tensor) -> Any:
            return forward(**{**given, **dict(zip(names, (t.clone() for t in tensors), strict=True))})

        return checkpoint(run, *(given[name] for name in names), use_reentrant=False)

    with overridden_forward(block, recomputed):
        yield


@contextmanager
def _recomputed(block: nn.Module, has_lora: bool) -> Iterator[None]:
    """Recomputes a block of any kind in the backward pass, where copy-on-write is in force again.

    Reentrant, because the other kind of checkpoint keeps what it recomputes by hooks of its own, past copy-on-write.
    """
    forward = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))  # copies dictionaries that the model changes block by block
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[place] for place in places]
        learns = has_lora or any(tensor.requires_grad for tensor in tensors)
        if not learns or not torch.is_grad_enabled():
            return forward(*args, **kwargs)

        def run(_: Tensor, *tensors: Tensor) -> Any:
            values = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                values[place] = tensor.clone()  # the block may add to its input
            again = tree_unflatten(values, structure)
            return forward(*again[0], **again[1])

        # Where the LoRA is inside, the output needs a gradient even where no input has one.
        trigger = torch.ones(1, device=tensors[0].device, requires_grad=True)
        return checkpoint(run, trigger, *tensors, use_reentrant=True, preserve_rng_state=False)

    with overridden_forward(block, recomputed):
        yield


def recomputed(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """`function(tensor)`, computed again in the backward pass, until when nothing of it is kept."""
    if not tensor.requires_grad:
        return function(tensor)
    return checkpoint(function, tensor, use_reentrant=True, preserve_rng_state=False)
