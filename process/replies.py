"""Replies of a model as plans: JSON that is cut off, wrapped in prose or nearly right becomes a plan, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import json_repair

from ..core.errors import ProcessError
from .states import ADD, BY_CRITIC, MOST_FACTS, MOST_STROKES, OPERATIONS, Fact, Plan, Region, Stroke

BOXES = ("region", "bbox_2d", "bbox", "box")  # keys that models write a rectangle under
ToRegion = Callable[[Sequence[float]], Region | None]


def read_object(reply: str) -> dict[str, Any]:
    """The first JSON object of a reply, mended where it is broken.

    Raises:
        ProcessError: there is none.
    """
    start = reply.find("{")
    found = json_repair.loads(reply[start:]) if start >= 0 else None
    if isinstance(found, list):  # an object, and prose behind it
        found = next((part for part in found if isinstance(part, dict)), None)
    if not isinstance(found, dict) or not found:
        raise ProcessError(f"The model was asked for a JSON object and replied {_short(reply)}.")
    return found


def plan_from_reply(prompt: str, reply: str, to_region: ToRegion, source: str = BY_CRITIC) -> Plan:
    """A plan of what a model replied.

    What can be understood is kept: ids that are there twice get new ones, facts and strokes without words are left out,
    a region that meets an earlier one or is none is forgotten, what is more than a plan may hold is cut off.

    Args:
        to_region: what four numbers mean, None where they are no rectangle.

    Raises:
        ProcessError: no object in it, or nothing that could be inspected.
    """
    data = read_object(reply)
    strokes, ids = _strokes(_objects(data.get("strokes") or data.get("steps")), to_region)
    facts = _facts(_objects(data.get("facts") or data.get("questions")), ids)
    if not facts:
        raise ProcessError(f"The model's plan has no fact that could be inspected: {_short(reply)}.")
    return Plan(
        prompt=prompt,
        facts=tuple(facts),
        strokes=tuple(strokes),
        description=_text(data.get("description")),
        background=_text(data.get("background")),
        source=source,
    )


def fractions_of(width: float, height: float) -> ToRegion:
    """What four numbers mean that count to `width` across and to `height` down; fractions are taken as they are."""

    def to_region(numbers: Sequence[float]) -> Region | None:
        across, down = (1.0, 1.0) if max(numbers) <= 1 else (width, height)
        left, top, right, bottom = (
            min(1.0, max(0.0, number / side))
            for number, side in zip(numbers, (across, down, across, down), strict=True)
        )
        return Region(left, top, right, bottom) if left < right and top < bottom else None

    return to_region


def _strokes(found: Sequence[Mapping[str, Any]], to_region: ToRegion) -> tuple[list[Stroke], dict[str, str]]:
    """Strokes, and the id of each by what the reply called it."""
    strokes: list[Stroke] = []
    ids: dict[str, str] = {}
    for entry in found:
        instruction = _text(entry.get("instruction")) or _text(entry.get("text"))
        if not instruction or len(strokes) == MOST_STROKES:
            continue
        operation = _text(entry.get("operation")).lower()
        own = f"s{len(strokes) + 1}"
        ids.setdefault(_text(entry.get("id")) or own, own)
        region = _region(entry, to_region)
        if region is not None and any(other.region is not None and region.meets(other.region) for other in strokes):
            region = None
        kind = operation if operation in OPERATIONS else ADD
        strokes.append(Stroke(own, kind, instruction, _text(entry.get("local_prompt")), region))
    return strokes, ids


def _facts(found: Sequence[Mapping[str, Any]], strokes: Mapping[str, str]) -> list[Fact]:
    facts: list[Fact] = []
    for entry in found:
        question = _text(entry.get("question")) or _text(entry.get("text"))
        if not question or len(facts) == MOST_FACTS or any(fact.question == question for fact in facts):
            continue
        answer = "No" if _text(entry.get("answer")).lower().startswith("no") else "Yes"
        facts.append(Fact(f"f{len(facts) + 1}", question, answer, strokes.get(_text(entry.get("stroke")))))
    return facts


def _region(entry: Mapping[str, Any], to_region: ToRegion) -> Region | None:
    numbers = next((entry[name] for name in BOXES if isinstance(entry.get(name), list)), None)
    if numbers is None or len(numbers) != 4:
        return None
    try:
        return to_region([float(number) for number in numbers])
    except (TypeError, ValueError):
        return None


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; of a mapping its values, with their keys as ids; texts as what they say."""
    if isinstance(value, dict):
        value = [
            {"id": key, **entry} if isinstance(entry, dict) else {"id": key, "text": entry}
            for key, entry in value.items()
        ]
    if not isinstance(value, list):
        return []
    return [entry if isinstance(entry, dict) else {"text": entry} for entry in value if isinstance(entry, dict | str)]


def _text(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _short(text: str) -> str:
    shown = " ".join(text.split())
    return repr(shown if len(shown) <= 120 else f"{shown[:117]}…")
