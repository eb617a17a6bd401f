"""What the models of the second world are trained on: prompts of every form, and changes of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..captions import DEFAULT_COLOR, PLACES, caption, relation_caption
from ..world import COLORS, KINDS, TIMES, Thing, Words

EVENLY = (0.04, 0.26, 0.34, 0.2, 0.16)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))


def random_thing(random: np.random.Generator, colored: float = 0.75) -> Thing:
    kind = KINDS[random.integers(3)]
    return Thing(kind, COLORS[random.integers(4)] if random.random() < colored else DEFAULT_COLOR[kind])


def random_time(random: np.random.Generator, silent: float = 0.4) -> str | None:
    return None if random.random() < silent else TIMES[random.integers(3)]


def placed(things: list[Thing], random: np.random.Generator) -> tuple[Thing, ...]:
    """The things at different places, in the order of the places."""
    chosen = sorted(random.permutation(6)[: len(things)])
    return tuple(replace(t, place=PLACES[i]) for t, i in zip(things, chosen, strict=True))


def random_prompt(random: np.random.Generator, counts: Sequence[float] = EVENLY) -> tuple[str, Words]:
    """A prompt and what it says: nothing to four objects, some of one kind, placed, or one beside or behind another.

    Args:
        counts: the shares of prompts of nothing, one, two, three and four objects.
    """
    time = random_time(random)
    count = int(random.choice(5, p=counts))
    form = random.random()
    if count >= 2 and form < 0.1:
        things = (random_thing(random),) * count
    elif count >= 1 and form < 0.35:
        things = placed([random_thing(random) for _ in range(count)], random)
    else:
        things = tuple(random_thing(random) for _ in range(count))
    words = Words(things, time)
    if count == 2 and form > 0.75:
        relation = ("left of", "right of", "behind")[random.integers(3)]
        text = relation_caption(words, relation)
        if relation == "behind":
            words = replace(words, things=tuple(replace(t, place=(1, r)) for r, t in enumerate(things)))
        return text, words
    return caption(words), words


@dataclass(frozen=True)
class Change:
    """An instruction, and the words of the picture before and after it; every object has a place."""

    instruction: str
    before: Words
    after: Words


def random_change(random: np.random.Generator) -> Change:
    """Adds, removes, recolours, replaces or moves an object, or changes the time of day."""
    count = int(random.choice(5, p=[0.2, 0.22, 0.22, 0.22, 0.14]))
    before = placed([random_thing(random) for _ in range(count)], random)
    time = TIMES[random.integers(3)]
    taken = [t.place for t in before]
    free = [p for p in PLACES if p not in taken]
    thing = random_thing(random)
    form = random.random()
    if count == 0 or (form < 0.45 and count < 4):
        new = replace(thing, place=free[random.integers(len(free))])
        return _change(f"add {_name(new)}", before, (*before, new), time)
    old = before[random.integers(count)]
    rest = tuple(t for t in before if t is not old)
    if form < 0.6:
        return _change(f"remove the {_name(old)[2:]}", before, rest, time)
    if form < 0.75:
        new = replace(old, color=thing.color)
        return _change(
            f"make the {_name(replace(old, color=DEFAULT_COLOR[old.kind]))[2:]} {new.color}", before, (*rest, new), time
        )
    if form < 0.95:
        new = replace(thing, place=old.place)
        return _change(f"change the {_name(old)[2:]} to {_name(replace(new, place=None))}", before, (*rest, new), time)
    other = TIMES[random.integers(3)]
    return Change(f"make it {other}", Words(before, time), Words(before, other))


def _name(thing: Thing) -> str:
    return caption(Words((thing,)))


def _change(instruction: str, before: tuple[Thing, ...], after: tuple[Thing, ...], time: str) -> Change:
    return Change(
        instruction, Words(before, time), Words(tuple(sorted(after, key=lambda t: PLACES.index(t.place))), time)
    )  # type: ignore[arg-type]
