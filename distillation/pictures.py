"""Pictures that a recipe's overlays embed are written once, however many questions show them.

The engine knows no kinds of overlay: any long text in an overlay's plain data is taken for a picture.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.errors import RecipeError

TABLE = "pictures"  # of a recipe's plain data: from "sha256:…" to the text itself
LONGEST_INLINE = 1024  # characters; longer texts move to the table
REFERENCE = re.compile(r"sha256:[0-9a-f]{64}")


def share_pictures(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain data with its overlays' long texts in a table, if there are any, and references in their place.

    The same text has one entry, a reference is "sha256:" and the hash of the text.
    """
    table: dict[str, str] = {}

    def share(text: str) -> str:
        if len(text) <= LONGEST_INLINE:
            return text
        reference = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        table[reference] = text
        return reference

    shared = _with_overlays(recipe, share)
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
                f"An overlay refers to the picture {text!r}, which the recipe's table {TABLE!r} lacks. Add it there, "
                "or embed the picture in the overlay."
            )
        return table[text]

    return _with_overlays({name: value for name, value in recipe.items() if name != TABLE}, resolve)


def _with_overlays(recipe: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy with every text of the questions' overlays changed; rows of another shape stay for whoever checks them."""
    rows = recipe.get("questions")
    if not isinstance(rows, list | tuple):
        return dict(recipe)
    changed = [
        {**row, "overlay": _map_texts(row["overlay"], change)} if isinstance(row, Mapping) and "overlay" in row else row
        for row in rows
    ]
    return {**recipe, "questions": changed}


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
