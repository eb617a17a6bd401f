"""What the second world's critic understands: the wordings of the overlays, facts of a picture, and what to write."""

from __future__ import annotations

from collections.abc import Iterator

from ... import overlays
from .captions import COUNTS, PLACES, PROMPT_WORDS, place_name, thing_name
from .world import COLORS, KINDS, TIMES, Thing

POSTFIX = " Answer with Yes or No."
THING = ("Is there {} in the image?", "Does the image show {}?")
COUNT = ("Are there {} in the image?", "Does the image show {}?")
TIME = ("Is it {}?", "Is this a {} scene?", "Is the image a picture of {}?")
RELATIONS = {"left of": "Is {} left of {}?", "right of": "Is {} right of {}?", "behind": "Is {} behind {}?"}
DESCRIBE = "Describe the image."
NEXT = "What is the next step for {}?"
NOTHING = "nothing"
PLAN = "Describe the image for {}."  # what is to be seen at the end, everything at a place of its own
FITS = "Is the next step {} for {}?"
AT_POINT = "What is at Point {}?"


def thing_names() -> Iterator[str]:
    for kind in KINDS:
        yield f"a {kind}"
        yield from (f"a {color} {kind}" for color in COLORS)
        yield thing_name(Thing(kind, "white", PLACES[0]), colored=True)


def of_overlays() -> Iterator[str]:
    """Every wording and guard of the overlays that the world has controls for."""
    shown = [
        *(overlays.line_weight(t, y=y) for t in (0.01, 0.03) for y in (0.06, 0.5, 0.92)),
        *(overlays.depth([(0.1, 0.1), (0.9, 0.9)], order=order) for order in ("AB", "BA")),
        overlays.composition(regions=[(0.1, 0.1, 0.3, 0.3)]),
    ]
    for overlay in shown:
        yield from (*overlay.questions(), *overlay.guards())


def all_texts() -> list[str]:
    """Every text that the tokenizer must know."""
    things = list(thing_names())
    counted = [f"{count} {color} {kind}s" for count in COUNTS[2:] for color in COLORS for kind in KINDS]
    return [
        *of_overlays(),
        *(t.format(x) for t in THING for x in things),
        *(t.format(x) for t in COUNT for x in counted),
        *(t.format(x) for t in TIME for x in TIMES),
        *(t.format(things[0], things[0]) for t in RELATIONS.values()),
        *(place_name(p) for p in PLACES),
        *(DESCRIBE, NEXT, NOTHING, AT_POINT, POSTFIX, ", . : ; yes no"),
        *PROMPT_WORDS,
    ]
