"""An overlay that runs from one to another, for a control that follows a slider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..core.errors import OverlayError
from ..core.protocols import slider_values
from .layer import Layer, Measured
from .parameters import parse_color
from .stack import Overlay, build_stack

FROM, TO = "from", "to"  # of a parameter that runs, in plain data


@dataclass(frozen=True)
class Range:
    """Two overlays of the same kinds, and all those between them: numbers, places and colours run evenly.

    Raises:
        OverlayError: the two are the same, or differ in something that has no middle, such as a text.
    """

    first: Overlay
    last: Overlay

    def __post_init__(self) -> None:
        if self.first == self.last:
            raise OverlayError("Expected a range between two different overlays, but both ends are the same.")
        kinds = [[layer.kind for layer in end.layers] for end in (self.first, self.last)]
        if kinds[0] != kinds[1]:
            raise OverlayError(
                f"Expected the same kinds of layers at both ends of a range, got {kinds[0]}, {kinds[1]}."
            )
        self.at(0.0)

    def at(self, value: float) -> Overlay:
        """The overlay at a value of the slider: -1 is the first, 1 the last, and what lies beyond is the nearer end."""
        share = (min(max(value, -1.0), 1.0) + 1) / 2
        pairs = zip(self.first.layers, self.last.layers, strict=True)
        return Overlay(tuple(_fields_between(one, other, share) for one, other in pairs))

    def __add__(self, other: Overlay) -> Range:
        """This range with a fixed overlay drawn on top of it."""
        return Range(self.first + other, self.last + other)

    def __radd__(self, other: Overlay) -> Range:
        return Range(other + self.first, other + self.last)

    def apply(self, images: Tensor) -> Tensor:
        """Composites the range over a batch, from its first overlay to its last; the middle over a single picture.

        See `Overlay.apply`.
        """
        values = slider_values(len(images))
        return torch.cat([self.at(v).apply(image[None]) for v, image in zip(values, images, strict=True)])

    def questions(self) -> tuple[str, ...]:
        """See `Overlay.questions`, as are the next two; the wordings are those of the first."""
        return self.first.questions()

    def wordings(self) -> tuple[tuple[str, ...], ...]:
        return self.first.wordings()

    def guards(self) -> tuple[str, ...]:
        return self.first.guards()

    def describe(self, value: float) -> str:
        """What the control is at a value of the slider, in its own unit, such as "horizon at 45 %"."""
        layers = zip(self.first.layers, self.last.layers, self.at(value).layers, strict=True)
        share = (min(max(value, -1.0), 1.0) + 1) / 2
        return ", ".join(_describe(now, share) for one, other, now in layers if one != other)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data that `build` takes back: what runs is a mapping {"from": …, "to": …}."""
        rows = []
        for one, other in zip(self.first.to_dict(), self.last.to_dict(), strict=True):
            names = [*one, *(name for name in other if name not in one)]
            defaults = {name: _default(self.first, name) for name in names if name not in one or name not in other}
            ends = {name: (one.get(name, defaults.get(name)), other.get(name, defaults.get(name))) for name in names}
            rows.append({name: a if a == b else {FROM: a, TO: b} for name, (a, b) in ends.items()})
        return rows


def between(first: Overlay, last: Overlay) -> Range:
    """A range of overlays; see `Range`."""
    return Range(first, last)


def build(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Overlay | Range:
    """Builds an overlay from plain data: one layer's mapping or a list of them, each with `kind` and its parameters.

    A parameter that is a mapping {"from": …, "to": …} makes a range of it.

    Raises:
        OverlayError: an unknown kind, a missing, unknown or wrong parameter, or a range without a middle.
    """
    if not _runs(data):
        return build_stack(data)
    return Range(build_stack(_end(data, FROM)), build_stack(_end(data, TO)))


def _runs(data: Any) -> bool:
    rows = [data] if isinstance(data, Mapping) else data if isinstance(data, Sequence) else []
    return any(_is_range(value) for row in rows if isinstance(row, Mapping) for value in row.values())


def _is_range(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {FROM, TO}


def _end(data: Any, end: str) -> Any:
    if isinstance(data, Mapping):
        return {name: value[end] if _is_range(value) else value for name, value in data.items()}
    return [_end(row, end) for row in data]


def _default(overlay: Overlay, name: str) -> Any:
    found = next(f for layer in overlay.layers for f in fields(layer) if f.name == name)  # type: ignore[arg-type]
    return found.default


def _fields_between(one: Any, other: Any, share: float) -> Any:
    changes = {
        field.name: _between(field.name, getattr(one, field.name), getattr(other, field.name), share)
        for field in fields(one)
    }
    return replace(one, **changes)


def _between(name: str, one: Any, other: Any, share: float) -> Any:
    if one == other:
        return one
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(_between(name, a, b, share) for a, b in zip(one, other, strict=True))
    if isinstance(one, str) and isinstance(other, str):
        return _color_between(name, one, other, share)
    if is_dataclass(one) and type(one) is type(other):
        return _fields_between(one, other, share)
    if _is_number(one) and _is_number(other):
        return one + (other - one) * share
    raise OverlayError(
        f"Expected {name} as two numbers, colours or lists of them of one length, got {one!r}, {other!r}."
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _color_between(name: str, one: str, other: str, share: float) -> str:
    try:
        ends = parse_color(one), parse_color(other)
    except OverlayError as error:
        raise OverlayError(f"Between {one!r} and {other!r} there is no {name}: leave it the same.") from error
    return "#" + "".join(f"{round(255 * (a + (b - a) * share)):02x}" for a, b in zip(*ends, strict=True))


def _describe(layer: Layer, share: float) -> str:
    if isinstance(layer, Measured):
        return layer.describe()
    return f"{layer.kind.replace('_', ' ')}, {share:.0%} of the way".replace("%", " %")
