"""Checks of values that users write: each refusal says what was expected and what came."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..core.errors import RecipeError


def check_keys(what: str, data: Mapping[str, Any], owner: type) -> None:
    known = [f.name for f in fields(owner)]
    if unknown := sorted(set(data) - set(known)):
        raise RecipeError(f"Unknown {what} keys {unknown}. Known ones are {known}: correct or remove them.")


def check(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"Expected {name} to be {expected}, got {value!r}.")


def is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_integer(name: str, value: object, least: int, most: float = math.inf) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    check(good, name, f"a whole number {bounds}", value)


def check_number(
    name: str, value: object, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if good and above is not None:
        good = value > above  # type: ignore[operator]
    if good and least is not None:
        good = value >= least  # type: ignore[operator]
    if good and most is not None:
        good = value <= most  # type: ignore[operator]
    bounds = [f"above {above}"] * (above is not None) + [f"at least {least}"] * (least is not None)
    bounds += [f"at most {most}"] * (most is not None)
    check(good, name, " and ".join(["a number", *bounds]), value)
