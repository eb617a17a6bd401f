# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A LoRA file, of this pack or of others, as the starting point of one that is trained.

ComfyUI's own tables know the key names of every trainer; what they give is put together layer by layer, exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ...core.errors import LoraFileError
from ..lora import LoraWeights


class Part(NamedTuple):
    """A low-rank change of some rows of a layer: B · A, its scale already in B."""

    first_row: int
    down: Tensor  # A [r, in]
    up: Tensor  # B [rows, r]


def starting_from(patcher: Any, fresh: LoraWeights, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LoRA that changes the model as `state` does, in the layers, rank and alpha of `fresh`.

    Ranks that `state` leaves free take their A from `fresh` and zero as B, so that they can learn.

    Raises:
        LoraFileError: the file fits no layer of the model, changes others than those that are trained, needs a
            higher rank, or is no plain LoRA.
    """
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(state)), keys, log_missing=False)
    parts = _by_layer(loaded)
    if not parts:
        raise LoraFileError("The existing LoRA fits no layer of this MODEL: choose one that was trained for it.")
    if others := sorted(set(parts) - set(fresh.matrices)):
        raise LoraFileError(
            f"The existing LoRA changes {len(others)} layers that are not trained here, such as {others[0]}. "
            "Apply it to the MODEL by LoraLoader instead."
        )
    scale = fresh.alpha / fresh.rank
    found: dict[str, Tensor] = {}
    for name, (down, up) in fresh.matrices.items():
        down, up = down.clone(), torch.zeros_like(up)
        rank = _fill(down, up, parts.get(name, []))
        if rank > fresh.rank:
            raise LoraFileError(f"The existing LoRA has rank {rank}, above {fresh.rank}: set rank to {rank} or more.")
        found[f"{name}.lora_A"], found[f"{name}.lora_B"] = down, up / scale
    return found


def _by_layer(loaded: Mapping[Any, Any]) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = defaultdict(list)
    for target, adapter in loaded.items():
        key, rows = (target, (0, 0, None)) if isinstance(target, str) else target[:2]
        if not key.startswith("diffusion_model.") or not key.endswith(".weight"):
            continue  # of a text encoder
        plain = isinstance(adapter, LoRAAdapter) and adapter.weights[3:5] == (None, None) and rows[0] == 0
        if not plain:
            raise LoraFileError(f"The existing LoRA is no plain LoRA at {key}: choose one without DoRA or LyCORIS.")
        up, down, alpha = adapter.weights[:3]
        scale = 1.0 if alpha is None else alpha / len(down)
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        parts[name].append(Part(rows[1], down.flatten(1).float(), up.flatten(1).float() * scale))
    return parts


def _fill(down: Tensor, up: Tensor, parts: list[Part]) -> int:
    """Writes the parts into A and B as far as they fit; the rank that they need. Parts of one A share its rank."""
    used, places = 0, []
    for part in parts:
        place = next((first for first, other in places if torch.equal(other, part.down)), None)
        if place is None:
            place, used = used, used + len(part.down)
            places.append((place, part.down))
        last = place + len(part.down)
        if last <= len(down):
            down[place:last] = part.down
            up[part.first_row : part.first_row + len(part.up), place:last] += part.up
    return used
