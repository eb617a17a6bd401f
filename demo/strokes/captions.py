"""The language of the second world: prompts of whole pictures, and instructions that change a picture."""

from __future__ import annotations

import re
from dataclasses import replace

from .world import COLORS, KINDS, TIMES, Thing, Words

DEFAULT_COLOR = {"house": "white", "tree": "green", "ball": "yellow"}  # of an object whose colour is not said
ROWS, COLUMN_NAMES = ("far", "near"), ("left", "middle", "right")
PLACES = tuple((column, row) for row in (0, 1) for column in range(3))
COUNTS = ("", "a", "two", "three", "four")
EMPTY = "an empty field"
PROMPT_WORDS = (
    *"a an and of the it to by two three four far near left middle right behind".split(),  # noqa: SIM905
    *"add remove make change empty field".split(),  # noqa: SIM905
    *(",", *TIMES, *COLORS, *KINDS, *(f"{kind}s" for kind in KINDS)),
)


def place_name(place: tuple[int, int]) -> str:
    """For example "far left"."""
    column, row = place
    return f"{ROWS[row]} {COLUMN_NAMES[column]}"


def thing_name(thing: Thing, article: str = "a", colored: bool | None = None) -> str:
    """For example "a blue house far left"; the default colour of a kind is left out unless `colored`."""
    said = colored if colored is not None else thing.color != DEFAULT_COLOR[thing.kind]
    words = [article, thing.color if said else "", thing.kind, place_name(thing.place) if thing.place else ""]
    return " ".join(w for w in words if w)


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(words: Words, colored: bool | None = None) -> str:
    """A prompt that says all of `words`, for example "a blue house, two trees and a white ball by night"."""
    groups: list[tuple[Thing, int]] = []
    for thing in words.things:
        if groups and groups[-1][0] == thing and thing.place is None:
            groups[-1] = (thing, groups[-1][1] + 1)
        else:
            groups.append((thing, 1))
    names = []
    for thing, count in groups:
        name = thing_name(thing, COUNTS[count], colored)
        names.append(name if count == 1 else name.replace(thing.kind, f"{thing.kind}s"))
    scene = join(names) if names else EMPTY
    return f"{scene} by {words.time}" if words.time else scene


def relation_caption(words: Words, relation: str, colored: bool | None = None) -> str:
    """Two objects by "left of", "right of" or "behind": the first of `words` is at the left, or behind."""
    first, second = (thing_name(replace(t, place=None), colored=colored) for t in words.things)
    if relation == "right of":
        first, second = second, first
    scene = f"{first} {relation} {second}"
    return f"{scene} by {words.time}" if words.time else scene


_THING = re.compile(
    rf"(?P<count>an?|the|two|three|four)\s+(?:(?P<color>{'|'.join(COLORS)})\s+)?(?P<kind>{'|'.join(KINDS)})s?\b"
    rf"(?:\s+(?P<row>far|near)\s+(?P<column>left|middle|right)\b)?"
)


def parse_prompt(prompt: str) -> Words:
    """Reads a caption; what it does not know is passed over, and objects past the fourth are left out."""
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    time = next((m for m in re.findall(r"\bby (\w+)", text) if m in TIMES), None)
    things: list[Thing] = []
    for match in _THING.finditer(text):
        kind = match["kind"]
        place = (COLUMN_NAMES.index(match["column"]), ROWS.index(match["row"])) if match["row"] else None
        thing = Thing(kind, match["color"] or DEFAULT_COLOR[kind], place)
        things += [thing] * max(1, COUNTS.index(match["count"]) if match["count"] in COUNTS else 1)
    if len(things) == 2 and " behind " in text:
        things = [replace(things[0], place=(1, 0)), replace(things[1], place=(1, 1))]
    elif len(things) == 2 and " right of " in text:
        things = things[::-1]
    return Words(tuple(things[:4]), time)
