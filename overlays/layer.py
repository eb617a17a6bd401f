"""What a kind of overlay is, and the registry of kinds. Each kind is a file in `kinds/`, with its own plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from ..core.errors import OverlayError


class Layer(Protocol):
    """A frozen dataclass: parameters of plain values, geometry in fractions of the image.

    The metadata of a parameter holds its `help` and, where a value is not plain, `write` (to plain data) and `read`
    (back). With `later` it is left out of plain data at its default: it came after the first version, whose
    checkpoints are compared with what is written now.
    """

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]."""
        ...

    def questions(self) -> tuple[str, ...]:
        """Three wordings of the question that goes with the drawing, by the method's authors where they have one.

        Asked with the overlay; the wanted answer is Yes.
        """
        ...

    def guards(self) -> tuple[str, ...]:
        """Questions that a generator fails which paints the instruction itself.

        Asked without the overlay; the wanted answer is Yes.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """A layer whose control is one number with a unit."""

    def describe(self) -> str:
        """What it is, for people, such as "horizon at 45 %"."""
        ...


KINDS: dict[str, type[Layer]] = {}
_T = TypeVar("_T", bound=type)


def register(layer: _T) -> _T:
    """Makes a kind known to `build`; a class decorator."""
    KINDS[layer.kind] = layer
    return layer


def write_layer(layer: Layer) -> dict[str, Any]:
    """Plain data that `read_layer` takes back."""
    row: dict[str, Any] = {"kind": layer.kind}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.metadata.get("later") and value == field.default:
            continue
        value = field.metadata.get("write", lambda v: v)(value)
        row[field.name] = list(value) if isinstance(value, tuple) else value
    return row


def read_layer(data: Mapping[str, Any]) -> Layer:
    """A layer from its kind and parameters. Raises OverlayError: see `build`."""
    row = dict(data)
    kind = row.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise OverlayError(f"Expected an overlay kind out of {sorted(KINDS)}, got {kind!r}.")
    known = {field.name: field for field in fields(KINDS[kind])}
    if unknown := sorted(set(row) - set(known)):
        raise OverlayError(f"The overlay {kind!r} has no parameter {unknown}; it knows {list(known)}.")
    values = {name: known[name].metadata.get("read", lambda v: v)(value) for name, value in row.items()}
    try:
        return KINDS[kind](**values)
    except TypeError as error:
        raise OverlayError(f"The overlay {kind!r} needs other parameters: {error}.") from error
