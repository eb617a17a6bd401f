"""Several questions about one image in one sequence, so that what their prompts share is computed once.

The sequence holds the common beginning of all prompts, image included, and behind it the rest of each. A rest sees the
beginning and itself, at the positions that it has when it is asked alone, so that values and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .prompting import Encoded, is_sequence

# A token of their prompts sees the tokens behind it: what is shared depends on what is not.
BIDIRECTIONAL_PROMPTS = ("paligemma", "colpali")
MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # by transformers' names


@dataclass(frozen=True)
class SharedPrompts:
    """Q prompts for images of one size in one sequence of L tokens, and T answer tokens that are rated in it."""

    inputs: dict[str, Tensor]  # the processor's text side: [1, L] or [1, L, …]
    place: Tensor  # [L], where each token stands in its own prompt
    part: Tensor  # [L], 0 in the common beginning, q + 1 in the rest of prompt q
    predicting: Tensor  # [T], where in the sequence the rated tokens are predicted
    targets: Tensor  # [T], their ids
    question: Tensor  # [T], whose answer they belong to
    image_shapes: dict[str, tuple[int, ...]]  # the image side that the model takes, for one image


def can_share(model: Any) -> bool:
    """Whether prompts of this model can share their beginning.

    Masks cannot keep apart what a recurrent layer or a convolution hands on from token to token.
    """
    text = model.config.get_text_config()
    masked = set(getattr(text, "layer_types", None) or ()) <= MASKED_LAYERS
    convolves = any(isinstance(module, nn.Conv1d) for module in model.get_decoder().modules())
    bidirectional = model.config.model_type in BIDIRECTIONAL_PROMPTS
    return text._attn_implementation == "sdpa" and masked and not convolves and not bidirectional


def share(rows: Sequence[Encoded], image_token: int | None, device: torch.device | str) -> SharedPrompts | None:
    """Joins the prompts; None if a part of the image would lie outside their common beginning."""
    ids = [row.text_side["input_ids"][0] for row in rows]
    common = _common_length(ids)
    if image_token is None or any((tokens[common:] == image_token).any() for tokens in ids):
        return None
    rests = [torch.arange(common, len(tokens)) for tokens in ids]
    starts = [common]
    for rest in rests[:-1]:
        starts.append(starts[-1] + len(rest))
    place = torch.cat([torch.arange(common), *rests])
    part = torch.cat(
        [torch.zeros(common, dtype=torch.long), *(torch.full_like(rest, q) for q, rest in enumerate(rests, start=1))]
    )
    predicting, question = [], []
    for index, (row, tokens, start) in enumerate(zip(rows, ids, starts, strict=True)):
        own = torch.arange(len(tokens) - len(row.answer), len(tokens))  # each predicts the token behind it
        predicting.append(torch.where(own < common, own, own - common + start))
        question.append(torch.full_like(own, index))
    inputs = {name: _join([row.text_side[name] for row in rows], len(ids[0]), common) for name in rows[0].text_side}
    # Without a mask transformers would take the places for those of several texts packed together.
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return SharedPrompts(
        {name: value.to(device) for name, value in inputs.items()},
        place.to(device),
        part.to(device),
        torch.cat(predicting).to(device),
        torch.cat([row.answer for row in rows]).to(device),
        torch.cat(question).to(device),
        rows[0].image_shapes,
    )


def _common_length(ids: Sequence[Tensor]) -> int:
    shortest = min(len(tokens) for tokens in ids)
    same = torch.stack([tokens[:shortest] == ids[0][:shortest] for tokens in ids]).all(dim=0)
    return int(same.cumprod(dim=0).sum())


def _join(values: Sequence[Tensor], length: int, common: int) -> Tensor:
    """Joins sequences, the first of `length`, as the prompts are joined; takes the first of what is no sequence."""
    if not is_sequence(values[0], length):
        return values[0]
    return torch.cat([values[0][:, :common], *(value[:, common:] for value in values)], dim=1)


@contextmanager
def shared_attention(model: Any, prompts: SharedPrompts) -> Iterator[None]:
    """While entered, the model's text part treats its input as `prompts` say."""
    decoder = model.get_decoder()
    configs = {id(c): c for c in (model.config.get_text_config(), *_configs(decoder))}.values()
    before = [(config, config._attn_implementation) for config in configs]
    token = _in_force.set(prompts)
    hook = decoder.register_forward_pre_hook(_own_positions, with_kwargs=True)
    try:
        for config in configs:
            config._attn_implementation = ATTENTION
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
        hook.remove()
        _in_force.reset(token)


_in_force: ContextVar[SharedPrompts] = ContextVar("shared prompts in force")
# Our name in transformers' registers, which are global: ComfyUI may have a copy of the pack beside an installed one.
ATTENTION = f"sdpa_shared_prefix_{id(_in_force)}"


def _configs(decoder: Any) -> Iterator[Any]:
    return (module.config for module in decoder.modules() if hasattr(module, "config"))


def _own_positions(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Moves every rest to where it would stand alone: the model has counted on through the rests before it."""
    place = _in_force.get().place
    given = kwargs.get("position_ids")  # [B, L], or with a leading dimension for rotary positions in 2-D
    moved = torch.arange(len(place), device=place.device) - place
    return args, {**kwargs, "position_ids": place[None] if given is None else given - moved}


def _mask(*args: Any, mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Tensor:
    """The model's own mask (causal, sliding window, whole images), for prompts that share a beginning."""
    prompts = _in_force.get()
    place, part = prompts.place, prompts.part

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        related = (part[key] == 0) | (part[key] == part[query])
        return related & mask_function(batch, head, place[query], place[key])

    seen = sdpa_mask(*args, **{**kwargs, "mask_function": sees, "allow_is_causal_skip": False})
    assert seen is not None
    # Added to the scores, not a boolean: of that each layer would make, and keep for its gradient, one of its own.
    return torch.zeros_like(seen, dtype=kwargs["dtype"]).masked_fill(~seen, -torch.inf)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _mask)
