"""What templates are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SPACE = 98  # pixels above a column that wires go past


@dataclass(frozen=True)
class Node:
    """A node of a template: its type, values of widgets by name, and inputs by name as "key.output"."""

    type: str
    widgets: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    title: str | None = None
    models: Sequence[Mapping[str, str]] = ()  # files that the frontend offers to download
    properties: Mapping[str, Any] = field(default_factory=dict)


Columns = Mapping[str, Mapping[str, Node]]  # nodes by key, in titled columns from left to right


@dataclass(frozen=True)
class App:
    """What app mode shows beside Run: widgets as "key.widget", and the nodes whose pictures are the result."""

    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Template:
    """Columns of nodes from left to right, each a titled group; the note stands below one."""

    columns: Columns
    note: str
    note_width: int = 300
    note_below: int = -1  # the column that it stands below
    lowered: Mapping[int, int] = field(default_factory=lambda: {1: SPACE})  # columns, by wires above them
    between: int = 60  # pixels between columns
    app: App | None = None  # opens in app mode; the file's name ends in .app, by which ComfyUI lists apps


@dataclass(frozen=True)
class Blueprint:
    """A subgraph for the node library: columns of nodes, what it shows of them as "key.name", words to find it by."""

    columns: Sequence[Mapping[str, Node]]
    inputs: Sequence[str]
    widgets: Sequence[str]
    outputs: Sequence[str]
    description: str
    aliases: Sequence[str]
