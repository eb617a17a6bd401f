"""Prompts that say what must be there, and whether a picture shows it: GenEval's six categories, and compositions of
three and four objects.

As in GenEval (Ghosh et al., 2023), what a prompt doesn't say may be as it likes, but for numbers, which are exact. A
composition is right if its objects are there, each in its colour and at its place where one is said, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, permutations

import numpy as np

from .captions import PLACES, caption, relation_caption
from .reader import Reading
from .world import COLORS, COLUMNS, KINDS, TIMES, Thing, Words

GENEVAL = ("single object", "two objects", "counting", "colors", "position", "color attribution")
COMPOSITIONS = ("three objects", "four objects")
CATEGORIES = (*GENEVAL, *COMPOSITIONS)
EACH = 40  # prompts of a category
APART = 8.0  # pixels by which one object must be left of another


@dataclass(frozen=True)
class Wanted:
    """A prompt and what is true of a picture that shows it.

    Attributes:
        colored: whether the colours of `words` count; prompts of single objects, pairs and places leave them open.
        in_order: whether the first of two objects must be left of the second.
        relation: between the two objects, "left of" or "right of" the second.
        exact: whether nothing else may be there; with `counted`, nothing else of the same kind.
    """

    category: str
    prompt: str
    words: Words
    colored: bool = True
    in_order: bool = False
    counted: bool = False
    exact: bool = False


def wanted_prompts(category: str, count: int = EACH, seed: int = 0) -> list[Wanted]:
    """The first `count` different prompts of a category that a seed draws; from the start again where it has fewer."""
    random = np.random.default_rng([seed, CATEGORIES.index(category)])
    found: dict[str, Wanted] = {}
    for _ in range(50 * count):
        one = _draw(category, random)
        found.setdefault(one.prompt, one)
        if len(found) == count:
            break
    return list(islice(cycle(found.values()), count))


def _draw(category: str, random: np.random.Generator) -> Wanted:
    time = None if random.random() < 0.5 else TIMES[random.integers(3)]
    if category in COMPOSITIONS:
        count = 3 + COMPOSITIONS.index(category)
        things = [_colored(random) for _ in range(count)]
        if random.random() < 0.5:
            chosen = sorted(random.permutation(len(PLACES))[:count])
            things = [replace(t, place=PLACES[i]) for t, i in zip(things, chosen, strict=True)]
        words = Words(tuple(things), time)
        return Wanted(category, caption(words, colored=True), words, exact=True)
    if category in ("single object", "counting"):
        thing = Thing(KINDS[random.integers(3)], COLORS[random.integers(4)])
        number = 1 if category == "single object" else int(random.integers(2, 5))
        words = Words((thing,) * number, time)
        if category == "counting":
            return Wanted(category, caption(words, colored=True), words, counted=True)
        return Wanted(category, caption(words, colored=False), words, colored=False)
    if category == "colors":
        words = Words((_colored(random),), time)
        return Wanted(category, caption(words, colored=True), words)
    first, second = random.permutation(KINDS)[:2].tolist()
    pair = Words((Thing(first, COLORS[random.integers(4)]), Thing(second, COLORS[random.integers(4)])), time)
    if category == "color attribution":
        return Wanted(category, caption(pair, colored=True), pair)
    if category == "two objects":
        return Wanted(category, caption(pair, colored=False), pair, colored=False)
    relation = ("left of", "right of")[random.integers(2)]
    return Wanted(category, relation_caption(pair, relation, colored=False), pair, colored=False, in_order=True)


def _colored(random: np.random.Generator) -> Thing:
    return Thing(KINDS[random.integers(3)], COLORS[random.integers(4)])


def shows(reading: Reading, wanted: Sequence[Wanted]) -> list[bool]:
    """Whether each of B pictures shows what is wanted of it."""
    return [_shows(reading, i, one) for i, one in enumerate(wanted)]


def things_there(reading: Reading, i: int) -> list[tuple[Thing, float, float]]:
    """Objects of one picture at their nearest places, each with its x in pixels and its depth, far 0 to near 1."""
    found = []
    for kind, color, x, depth in zip(
        *(values[i].tolist() for values in (reading.kind, reading.color, reading.x, reading.depth)), strict=True
    ):
        if kind >= 0:
            column = min(range(3), key=lambda c: abs(COLUMNS[c] - x))
            found.append((Thing(KINDS[kind], COLORS[color], (column, int(depth >= 0.5))), x, depth))
    return found


def _shows(reading: Reading, i: int, wanted: Wanted) -> bool:
    there = things_there(reading, i)
    things = wanted.words.things
    if wanted.words.time is not None and TIMES[int(reading.time[i])] != wanted.words.time:
        return False
    if wanted.exact and (len(there) != len(things) or reading.strays[i] > 0):
        return False
    if wanted.counted and sum(t.kind == things[0].kind for t, *_ in there) != len(things):
        return False
    return any(
        all(_is(found, thing, wanted.colored) for (found, *_), thing in zip(chosen, things, strict=True))
        and (not wanted.in_order or chosen[1][1] - chosen[0][1] > APART)
        for chosen in permutations(there, len(things))
    )


def _is(found: Thing, thing: Thing, colored: bool) -> bool:
    return (
        found.kind == thing.kind
        and (not colored or found.color == thing.color)
        and (thing.place is None or found.place == thing.place)
    )


def all_wanted(each: int = EACH, seed: int = 0) -> Iterator[Wanted]:
    for category in CATEGORIES:
        yield from wanted_prompts(category, each, seed)
