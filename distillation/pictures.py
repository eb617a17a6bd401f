"""Pictures that a recipe's questions and targets embed are written once, however many of them show them.

The engine knows no kinds of overlay: any long text in one's plain data is taken for a picture, as in references.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import RecipeError
from ..core.picture import FILE

TABLE = "pictures"  # of a recipe's plain data: from "sha256:…" to the text itself
# What may hold pictures, of the rows of each list.
SHOWN = {"questions": ("overlay", "references"), "targets": ("image", "mask")}
LONGEST_INLINE = 1024  # characters; longer texts move to the table
REFERENCE = re.compile(r"sha256:[0-9a-f]{64}")


def share_pictures(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with its embedded pictures in a table, if there are any, and references in their place.

    The same text has one entry, a reference is "sha256:" and the hash of the text.
    """
    table: dict[str, str] = {}

    def share(text: str) -> str:
        if len(text) <= LONGEST_INLINE:
            return text
        reference = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        table[reference] = text
        return reference

    shared = _with_pictures(recipe, share)
    return {**shared, TABLE: table} if table else shared


def resolve_pictures(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `share_pictures`: without a table. Data with embedded pictures comes back as it was.

    Raises:
        RecipeError: a reference to a picture that is not in the table, or a table of another kind.
    """
    table = recipe.get(TABLE, {})
    if not isinstance(table, Mapping) or not all(isinstance(text, str) for text in table.values()):
        raise RecipeError(f"Expected {TABLE} as a table of base64 texts by 'sha256:…', got {_brief(table)}.")

    def resolve(text: str) -> str:
        if not REFERENCE.fullmatch(text):
            return text
        if text not in table:
            raise RecipeError(
                f"The recipe refers to the picture {text!r}, which its table {TABLE!r} lacks. Add it there, "
                "or embed the picture itself."
            )
        return table[text]

    return _with_pictures({name: value for name, value in recipe.items() if name != TABLE}, resolve)


def with_folder(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's plain data in which the files of pictures are told by their place, no longer from a folder."""

    def placed(shown: Any) -> Any:
        if isinstance(shown, list):
            return [placed(one) for one in shown]
        file = shown.get(FILE) if isinstance(shown, Mapping) else None
        return {**shown, FILE: str(folder / file)} if isinstance(file, str) else shown

    return _with_shown(recipe, placed)


def _with_pictures(recipe: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy with every text changed that may be a picture."""
    return _with_shown(recipe, lambda shown: _map_texts(shown, change))


def _with_shown(recipe: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy with everything changed that may hold pictures.

    Lists and rows of another shape stay for whoever checks them.
    """
    lists = {key: recipe[key] for key in SHOWN if isinstance(recipe.get(key), list | tuple)}
    return {**recipe, **{key: [_changed(row, SHOWN[key], change) for row in rows] for key, rows in lists.items()}}


def _changed(row: Any, shown: Collection[str], change: Callable[[Any], Any]) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {name: change(value) if name in shown else value for name, value in row.items()}


def _map_texts(data: Any, change: Callable[[str], str]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {name: _map_texts(value, change) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_map_texts(value, change) for value in data]
    return data


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
