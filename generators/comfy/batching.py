# pyright: reportMissingImports=false
"""Prompts that share a forward pass: conditionings joined as ComfyUI itself joins a positive and a negative one."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import Any

from comfy.conds import CONDConstant, CONDRegular, is_equal
from torch import Tensor

# What gives a conditioning a place, a time or a model of its own, by ComfyUI's names.
APART = {
    *("area", "mask", "strength", "default"),
    *("timestep_start", "timestep_end", "clip_start_percent", "clip_end_percent"),
    *("control", "gligen", "hooks"),
}
JOINED = {"model_conds", "uuid"}  # by their own rules


def can_share(guider: Any, other: Any) -> bool:
    """Whether one forward pass can hold samples of two guiders (CFGGuider, with processed conds).

    Each of their conditionings must be a single one for the whole picture and all noise levels, with one tensor of the
    same shape for each input of the model; whatever else is in it must be equal.
    """
    names = guider.conds.keys()
    return names == other.conds.keys() and all(_can_join(guider.conds[name], other.conds[name]) for name in names)


def _can_join(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> bool:
    if len(rows) != 1 or len(others) != 1:
        return False
    (cond,), (other,) = rows, others
    if cond.keys() != other.keys() or APART & cond.keys():
        return False
    inputs, theirs = cond["model_conds"], other["model_conds"]
    if inputs.keys() != theirs.keys() or not all(_can_concat(inputs[name], theirs[name]) for name in inputs):
        return False
    return all(_alike(cond[name], other[name]) for name in cond.keys() - JOINED)


def _can_concat(value: Any, other: Any) -> bool:
    if type(value) is not type(other) or not value.can_concat(other):
        return False
    if isinstance(value, CONDConstant):
        return True
    # ComfyUI would also repeat a sequence to another one's length, and take one of two inputs in a batch of their own.
    single = isinstance(value, CONDRegular) and isinstance(value.cond, Tensor) and len(value.cond) == 1
    return single and value.cond.shape == other.cond.shape


def _alike(value: Any, other: Any) -> bool:
    """Equal, or encodings of the same shape, which the model gets as its inputs."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.shape == other.shape
    return is_equal(value, other)


def joined(guiders: Sequence[Any]) -> Any:
    """A guider for a batch that holds one sample of each of these, which can share a pass."""
    first = guiders[0]
    if all(guider is first for guider in guiders):
        return first  # ComfyUI repeats its inputs
    whole = copy.copy(first)
    whole.conds = {name: [_join([guider.conds[name][0] for guider in guiders])] for name in first.conds}
    return whole


def _join(conds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    together = {}
    for name, value in conds[0]["model_conds"].items():
        together[name] = copy.copy(value)
        together[name].cond = value.concat([cond["model_conds"][name] for cond in conds[1:]])
    return {**conds[0], "model_conds": together, "uuid": uuid.uuid4()}
