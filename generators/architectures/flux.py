"""Where a LoRA goes in Flux, and its key names in diffusers and in ComfyUI.

The tables map each linear layer of Black Forest Labs' own model, whose names ComfyUI keeps, to the layers that
diffusers splits it into, in the order in which their outputs are stacked
(black-forest-labs/flux `modules/layers.py`, diffusers `convert_flux_to_diffusers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...core.errors import GeneratorError, LoraFileError
from ..lora import LoraWeights

DOUBLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
DIFFUSERS_PREFIX = "transformer."
COMFYUI_PREFIX = "diffusion_model."
SUFFIXES = (".lora_A.weight", ".lora_B.weight", ".alpha")


def native_modules(num_double: int, num_single: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every adapted layer under its native name, with the diffusers layers it is made of."""
    for n in range(num_double):
        for native, parts in DOUBLE_BLOCK.items():
            yield f"double_blocks.{n}.{native}", tuple(f"transformer_blocks.{n}.{part}" for part in parts)
    for n in range(num_single):
        for native, parts in SINGLE_BLOCK.items():
            yield f"single_blocks.{n}.{native}", tuple(f"single_transformer_blocks.{n}.{part}" for part in parts)


def target_modules(num_double: int, num_single: int) -> tuple[str, ...]:
    """Full names of the adapted layers in diffusers: attention and feed-forward of both kinds of block.

    Full names, because a suffix such as "proj_out" would also match the model's output projection.
    """
    return tuple(part for _, parts in native_modules(num_double, num_single) for part in parts)


def to_diffusers(lora: LoraWeights) -> dict[str, Tensor]:
    """The LoRA under the names that diffusers' `load_lora_weights` reads, float32 on the CPU."""
    state: dict[str, Tensor] = {}
    for module, (down, up) in lora.matrices.items():
        state[f"{DIFFUSERS_PREFIX}{module}.lora_A.weight"] = _plain(down)  # [r, in]
        state[f"{DIFFUSERS_PREFIX}{module}.lora_B.weight"] = _plain(up)  # [out, r]
        state[f"{DIFFUSERS_PREFIX}{module}.alpha"] = torch.tensor(float(lora.alpha))
    return state


def to_comfyui(lora: LoraWeights, num_double: int, num_single: int) -> dict[str, Tensor]:
    """The LoRA under the native names that ComfyUI reads, float32 on the CPU, exact.

    A native layer that stacks the outputs of k diffusers layers gets their A stacked, their B on a block diagonal,
    rank k·r and alpha k·alpha, so that alpha / rank stays.
    """
    state: dict[str, Tensor] = {}
    for native, parts in native_modules(num_double, num_single):
        downs, ups = zip(*(lora.matrices[part] for part in parts), strict=True)
        state[f"{COMFYUI_PREFIX}{native}.lora_down.weight"] = _plain(torch.cat(downs))  # [k·r, in]
        state[f"{COMFYUI_PREFIX}{native}.lora_up.weight"] = _plain(torch.block_diag(*ups))  # [sum of out, k·r]
        state[f"{COMFYUI_PREFIX}{native}.alpha"] = torch.tensor(float(len(parts) * lora.alpha))
    return state


def native_to_diffusers(lora: LoraWeights, num_double: int, num_single: int) -> dict[str, Tensor]:
    """A LoRA of the native, fused layers under diffusers' names, exact: A is shared by the parts, B is cut by rows."""
    split: dict[str, tuple[Tensor, Tensor]] = {}
    for native, parts in native_modules(num_double, num_single):
        down, up = lora.matrices[native]
        # Query, key and value are as wide as the input; what is left belongs to the last part.
        widths = [down.shape[1]] * (len(parts) - 1)
        for part, rows in zip(parts, up.split([*widths, len(up) - sum(widths)]), strict=True):
            split[part] = (down, rows)
    return to_diffusers(LoraWeights(split, lora.rank, lora.alpha))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def export(lora: LoraWeights, format: str, num_double: int, num_single: int) -> dict[str, Tensor]:
    """The LoRA in one of the two formats.

    Raises:
        GeneratorError: `format` is neither "diffusers" nor "comfyui".
    """
    if format == "diffusers":
        return to_diffusers(lora)
    if format == "comfyui":
        return to_comfyui(lora, num_double, num_single)
    raise GeneratorError(f"Expected the LoRA format 'diffusers' or 'comfyui', got {format!r}.")


def from_diffusers(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> LoraWeights:
    """Reads what `to_diffusers` wrote, for layers of `shapes` (name -> (in, out) features).

    Raises:
        LoraFileError: keys are missing or unexpected, shapes differ, or the ranks or alphas are not all the same.
    """
    _check_keys(state, shapes)
    name = next(iter(shapes))
    rank = len(state[f"{DIFFUSERS_PREFIX}{name}.lora_A.weight"])
    alphas = {float(state[f"{DIFFUSERS_PREFIX}{module}.alpha"]) for module in shapes}
    if len(alphas) > 1:
        raise LoraFileError(f"Expected one alpha for all layers of the LoRA, got {sorted(alphas)[:4]}.")
    _check_shapes(state, shapes, rank)
    matrices = {
        module: tuple(state[f"{DIFFUSERS_PREFIX}{module}{suffix}"] for suffix in SUFFIXES[:2]) for module in shapes
    }
    return LoraWeights(matrices, rank, alphas.pop())  # type: ignore[arg-type]


def _check_keys(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    expected = {f"{DIFFUSERS_PREFIX}{module}{suffix}" for module in shapes for suffix in SUFFIXES}
    missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unexpected:
        raise LoraFileError(
            f"This LoRA is for another model: {len(missing)} of {len(expected)} keys are missing "
            f"({', '.join(missing[:3]) or 'none'}) and {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:3]) or 'none'}). Load the base model that it was trained on."
        )


def _check_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], rank: int) -> None:
    wrong = []
    for module, (width_in, width_out) in shapes.items():
        for suffix, shape in zip(SUFFIXES, ((rank, width_in), (width_out, rank)), strict=False):
            key = f"{DIFFUSERS_PREFIX}{module}{suffix}"
            if tuple(state[key].shape) != shape:
                wrong.append(f"{key} is {tuple(state[key].shape)}, not {shape}")
    if wrong:
        raise LoraFileError(
            f"This LoRA is for another model: {len(wrong)} shapes differ ({'; '.join(wrong[:3])}). "
            "Load the base model that it was trained on."
        )
