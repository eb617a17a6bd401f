"""Where the nodes, groups and the note of a template stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .parts import Template

TITLE, GAP, MARGIN, HEAD = 30, 26, 12, 52  # pixels: a node's title, between nodes, around a group, a group's title


def lay_out(template: Template, sizes: Mapping[str, Sequence[float]], note_height: float) -> dict[str, Any]:
    """Places of nodes, groups and note: columns from the left, nodes from the top."""
    places, groups, ends, x = {}, [], [], 0.0
    for number, (title, column) in enumerate(template.columns.items()):
        y = float(template.lowered.get(number, 0))
        width = max(node.width or sizes[key][0] for key, node in column.items())
        for key, node in column.items():
            height = max(node.height or 0, sizes[key][1])
            places[key] = [x, y + TITLE, node.width or width, height]
            y += TITLE + height + GAP
        groups.append([title, x - MARGIN, -HEAD, width + 2 * MARGIN, y - GAP + HEAD + MARGIN])
        ends.append((x, y + MARGIN + GAP))
        x += width + template.between
    left, below = ends[template.note_below]
    note = {"text": template.note, "pos": [left, below + TITLE], "size": [template.note_width, note_height]}
    return {"places": places, "groups": groups, "note": note}
