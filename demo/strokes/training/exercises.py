"""What the second world's critic is asked about a scene, and what is true: P(Yes), or a text to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .... import overlays
from ...training.critic_data import LOGIT
from ..captions import COUNTS, DEFAULT_COLOR, PLACES, caption, thing_name
from ..questions import AT_POINT, COUNT, DESCRIBE, NEXT, NOTHING, RELATIONS, THING, TIME
from ..world import COLORS, COLUMNS, IMAGE_SIZE, INK, KINDS, TIMES, Scenes, Thing, Words, foot_at
from .pictures import Pool
from .words import random_thing

A_LEFT = 0.9  # how often point A is left of point B: letters of nine pixels are hard to read
B_NEARER = 0.75  # how often it is asked whether B is nearer: asked evenly, no answer follows from the picture alone
RED_INKS = ((190, 20, 20), (235, 30, 30), (150, 40, 40))
SMEAR = 14.0  # pixels over which an object is spread that is none any more
STRETCH = 1.6  # factor by which an object is stretched that is none any more
WHOLE = 0.4  # share of the exercises about spoilt objects in which the object is not
FITTED = 0.5  # share of the last exercises about layouts in which an object is stretched, as if to fill its region


@dataclass(frozen=True)
class Stretched:
    """An object stretched about the middle of its foot."""

    rest: Scenes  # what is there without it
    x: float  # pixels, as is `foot`
    foot: float
    width: float  # factors
    height: float


@dataclass
class Row:
    """One exercise before it is drawn: the label of the picture, and of what it is mixed with, if it is."""

    question: str
    logit: float = 0.0
    overlay: overlays.Overlay | None = None
    heads: dict[str, int] | None = None
    other: Scenes | None = None
    other_logit: float = 0.0
    amounts: Tensor | None = None  # [128, 128], how much of the other scene there is; drawn at random if None
    ink: Sequence[int] | None = None
    painted: overlays.Overlay | None = None
    smeared: Sequence[Scenes] = ()  # of which the picture is the mean
    stretched: Stretched | None = None
    text: str = ""


def things_of(scenes: Scenes, i: int) -> list[tuple[Thing, float, float]]:
    """Objects of one scene at their nearest places, each with its x and its depth."""
    found = []
    for kind, color, x, depth in zip(
        scenes.kind[i].tolist(), scenes.color[i].tolist(), scenes.x[i].tolist(), scenes.depth[i].tolist(), strict=True
    ):
        if kind >= 0:
            place = (min(range(3), key=lambda c: abs(COLUMNS[c] - x)), int(depth >= 0.5))
            found.append((Thing(KINDS[kind], COLORS[color], place), x, depth))
    return found


def _line_logit(off: float) -> float:
    return LOGIT - 2.2 * min(off, 1.5) - 0.9 * max(off - 1.5, 0.0)


def _depth_logit(gap: float) -> float:
    return LOGIT * float(np.tanh(2.5 * gap)) + 0.5 * gap


def _layout_distance(boxes: list[tuple[float, float]], regions: list[tuple[float, float]]) -> float:
    """Mean distance in pixels between middles of objects and of regions, best matched; 50 for what has no partner."""
    fewer, more = sorted((boxes, regions), key=len)
    total, left = 50.0 * (len(more) - len(fewer)), list(more)
    for point in fewer:
        nearest = min(left, key=lambda other: np.hypot(point[0] - other[0], point[1] - other[1]))
        total += min(50.0, float(np.hypot(point[0] - nearest[0], point[1] - nearest[1])))
        left.remove(nearest)
    return total / max(1, len(more))


def _layout_logit(distance: float, hardened: bool) -> float:
    """Few pixels count last: at 2 of them P(Yes) is .87, rather than .94."""
    near, slope = (7.0, 0.8) if hardened else (10.0, 0.4)
    return LOGIT - slope * min(distance, near) - 0.08 * max(distance - near, 0.0)


def select_one(scenes: Scenes, i: int) -> Scenes:
    return scenes.select(torch.tensor([i]))


def _word(texts: Sequence[str], random: np.random.Generator) -> str:
    """The first wording half of the time, since it is the one that is asked most."""
    return texts[0] if random.random() < 0.5 else texts[int(random.integers(len(texts)))]


def _line_row(drawn: Pool, i: int, random: np.random.Generator) -> Row:
    weight = float(drawn.scenes.line_weight[i])
    near = random.random()
    bar = (
        weight + random.normal(0, 0.3)
        if near < 0.3
        else weight + random.normal(0, 1)
        if near < 0.6
        else random.uniform(0.8, 5.5)
    )
    bar = float(np.clip(bar, 0.7, 6.0))
    y = 0.0625 if random.random() < 0.5 else float(random.uniform(0.04, 0.96))
    overlay = overlays.line_weight(bar / IMAGE_SIZE, y=y, length=float(random.choice([0.6, random.uniform(0.3, 0.9)])))
    thick = max(1.0, bar)
    row = Row(
        _word(overlay.questions(), random), _line_logit(abs(thick - weight)), overlay, {"bar": int(thick * 4) - 1}
    )
    other = select_one(drawn.scenes, i)
    if random.random() < 0.6:
        other = replace(other, line_weight=torch.tensor([float(np.clip(thick + random.normal(0, 0.4), 1, 5))]))
    else:
        other = replace(other, line_weight=torch.tensor([float(random.uniform(1, 5))]))
    row.other, row.other_logit = other, _line_logit(abs(thick - float(other.line_weight)))
    return row


def _at_point(things: list[tuple[Thing, float, float]], column: int, y: float) -> tuple[Thing, float] | None:
    """The object of a column whose middle is nearest to a height (fraction), and its depth; None if there is none."""
    here = [
        (abs(float(foot_at(torch.tensor(d))) - 16 - y * IMAGE_SIZE), t, d)
        for t, _, d in things
        if t.place and t.place[0] == column
    ]
    return min(here, key=lambda found: found[0])[1:] if here else None


def _depth_gap(
    things: list[tuple[Thing, float, float]], columns: tuple[int, int], points: list[tuple[float, float]]
) -> float | None:
    """Depth of the object at point B less that at A; None where a point has no object in its column."""
    a, b = (_at_point(things, column, y) for column, (_, y) in zip(columns, points, strict=True))
    return None if a is None or b is None else b[1] - a[1]


def _draw_points(
    things: list[tuple[Thing, float, float]], random: np.random.Generator
) -> tuple[tuple[int, int], list[tuple[float, float]], bool] | None:
    """Columns and places (fractions) of points A and B, and whether a column holds two objects; None for one column."""
    columns = sorted({t.place[0] for t, _, _ in things if t.place})
    if len(columns) < 2 or len(things) > 3:
        return None
    a, b = sorted(int(c) for c in random.permutation(columns)[:2])
    if random.random() > A_LEFT:
        a, b = b, a
    crowded = any(sum(t.place[0] == c for t, _, _ in things if t.place) > 1 for c in (a, b))
    points = []
    for column in (a, b):
        x = COLUMNS[column] + random.normal(0, 4)
        if crowded or random.random() < 0.3:
            foot = next(float(foot_at(torch.tensor(d))) for t, _, d in things if t.place and t.place[0] == column)
            y = foot - random.uniform(2, 28)
        else:
            y = random.uniform(30, 124)
        points.append((float(np.clip(x / IMAGE_SIZE, 0.03, 0.97)), float(np.clip(y / IMAGE_SIZE, 0.03, 0.97))))
    return (a, b), points, crowded


def _point_heads(
    things: list[tuple[Thing, float, float]], columns: tuple[int, int], points: list[tuple[float, float]]
) -> dict[str, int]:
    heads = {"gap": round((_depth_gap(things, columns, points) or 0.0) * 10) + 10}
    for letter, column, (_, y) in zip("ab", columns, points, strict=True):
        heads[f"point_{letter}"] = column
        if found := _at_point(things, column, y):
            heads[f"depth_{letter}"] = min(9, int(found[1] * 10))
    return heads


def _point_row(drawn: Pool, i: int, random: np.random.Generator) -> Row | None:
    """What is at a point, to be written."""
    things = things_of(drawn.scenes, i)
    if (chosen := _draw_points(things, random)) is None:
        return None
    columns, points, _ = chosen
    number = int(random.integers(2))
    found = _at_point(things, columns[number], points[number][1])
    assert found is not None
    question = AT_POINT.format("AB"[number])
    heads = _point_heads(things, columns, points)
    return Row(question, overlay=overlays.depth(points), heads=heads, text=thing_name(found[0]))


def _depth_row(drawn: Pool, i: int, random: np.random.Generator) -> Row | None:
    things = things_of(drawn.scenes, i)
    if (chosen := _draw_points(things, random)) is None:
        return None
    (a, b), points, crowded = chosen
    order = "BA" if random.random() < B_NEARER else "AB"
    overlay = overlays.depth(points, order=order)
    sign = 1 if order == "BA" else -1
    gap = _depth_gap(things, (a, b), points)
    row = Row(
        _word(overlay.questions(), random),
        _depth_logit(sign * (gap or 0.0)),
        overlay,
        _point_heads(things, (a, b), points),
    )
    if not crowded:
        other = replace(select_one(drawn.others, i), line_weight=select_one(drawn.scenes, i).line_weight)
        gap = _depth_gap(things_of(other, 0), (a, b), points)
        if gap is not None:
            row.other, row.other_logit = other, _depth_logit(sign * gap)
    return row


def _middles(scenes: Scenes, i: int) -> list[tuple[float, float]]:
    boxes = scenes.boxes()[i]
    return [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes[scenes.kind[i] >= 0].tolist()]


def layout_exercise(drawn: Pool, i: int, random: np.random.Generator, hardened: bool) -> Row | None:
    """Whether objects are in red regions; last, whether whole objects are."""
    middles, others = _middles(drawn.scenes, i), _middles(drawn.others, i)
    if not 1 <= len(middles) <= 3:
        return None
    stretched, wholeness = None, 1.0
    if hardened and random.random() < FITTED:
        j = int(random.integers(len(middles)))
        stretched, wholeness = _stretched(drawn, i, j, random)
        x, y = middles[j]
        middles[j] = (x, stretched.foot - stretched.height * (stretched.foot - y))
    near = random.random()
    wanted = list(middles if near < 0.5 else others)
    spread = float(random.choice([1.0, 4.0, 15.0]))
    if near > 0.9:
        wanted = [(random.uniform(15, 113), random.uniform(45, 110)) for _ in range(int(random.integers(1, 4)))]
    regions = []
    for x, y in wanted:
        width, height = random.uniform(22, 32), random.uniform(28, 42)
        if random.random() < 0.5:
            width, height = 26.0, 36.0
        left = np.clip(x + random.normal(0, spread) - width / 2, 0, IMAGE_SIZE - width)
        top = np.clip(y + random.normal(0, spread) - height / 2, 0, IMAGE_SIZE - height)
        regions.append(tuple(float(v) / IMAGE_SIZE for v in (left, top, width, height)))
    overlay = overlays.composition(regions=regions)
    drawn_at = [((x + w / 2) * IMAGE_SIZE, (y + h / 2) * IMAGE_SIZE) for x, y, w, h in regions]
    distance = _layout_distance(middles, drawn_at)
    logit = _layout_logit(distance, hardened)
    heads = {"layout": min(19, int(distance / 2.5))}
    if stretched:
        logit = logit * wholeness if logit > 0 else logit
        return Row(_word(overlay.questions(), random), logit, overlay, heads, stretched=stretched)
    row = Row(_word(overlay.questions(), random), logit, overlay, heads)
    other = replace(select_one(drawn.others, i), line_weight=select_one(drawn.scenes, i).line_weight)
    distance = _layout_distance(_middles(other, 0), drawn_at)
    row.other, row.other_logit = other, _layout_logit(distance, hardened)
    return row


def _guard_row(drawn: Pool, i: int, random: np.random.Generator) -> Row:
    """Whether the instruction was painted into the picture."""
    kind, painted = random.integers(3), random.random() < 0.5
    if kind == 0:
        ink = RED_INKS[random.integers(3)] if painted else INK
        if int((drawn.scenes.kind[i] >= 0).sum()):
            return Row("Is the line in the drawing black?", -LOGIT if painted else LOGIT, ink=ink)
    if kind == 1:
        overlay = overlays.depth(
            [
                (float(x), float(y))
                for x, y in zip(
                    (random.uniform(0.05, 0.4), random.uniform(0.6, 0.95)), random.uniform(0.05, 0.95, 2), strict=True
                )
            ]
        )
    else:
        x, y = random.uniform(0.02, 0.7), random.uniform(0.02, 0.6)
        overlay = overlays.composition(regions=[(float(x), float(y), 0.22, 0.3)])
    return Row(overlay.guards()[0], -LOGIT if painted else LOGIT, painted=overlay if painted else None)


def _fact_row(drawn: Pool, i: int, random: np.random.Generator) -> Row:
    """A fact of the picture or its denial, about evenly: presence, colour, place, number, relation, time of day."""
    things = things_of(drawn.scenes, i)
    topic = random.random()
    if topic < 0.12 or not things:
        time = TIMES[random.integers(3)]
        return Row(_word(TIME, random).format(time), LOGIT if TIMES[int(drawn.scenes.time[i])] == time else -LOGIT)
    if topic < 0.3 and len(things) >= 2:
        (one, x1, d1), (two, x2, d2) = (things[j] for j in random.permutation(len(things))[:2])
        if one.kind != two.kind or one.color != two.color:
            colored = True if one.kind == two.kind else bool(random.random() < 0.7)
            names = [thing_name(replace(t, place=None), "the", colored) for t in (one, two)]
            relation = tuple(RELATIONS)[random.integers(3)]
            truth = {"left of": x1 < x2 - 8, "right of": x1 > x2 + 8, "behind": d1 < d2 - 0.1}[relation]
            clear = abs(x1 - x2) > 8 if relation != "behind" else abs(d1 - d2) > 0.2
            same = sum(t.kind == one.kind for t, _, _ in things) + sum(t.kind == two.kind for t, _, _ in things)
            if clear and (colored or same == 2):
                return Row(RELATIONS[relation].format(*names), LOGIT if truth else -LOGIT)
    if topic < 0.48:
        one = things[random.integers(len(things))][0] if random.random() < 0.7 else random_thing(random)
        colored = bool(random.random() < 0.5)
        count = sum(t.kind == one.kind and (not colored or t.color == one.color) for t, _, _ in things)
        asked = count if count >= 2 and random.random() < 0.5 else int(random.integers(2, 5))
        name = thing_name(replace(one, place=None), COUNTS[asked], colored).replace(one.kind, f"{one.kind}s")
        return Row(_word(COUNT, random).format(name), LOGIT if count == asked else -LOGIT)
    asked = _asked_thing(things, random)
    with_place, colored = random.random() < 0.5, bool(random.random() < 0.75)
    there = any(
        t.kind == asked.kind and (not colored or t.color == asked.color) and (not with_place or t.place == asked.place)
        for t, _, _ in things
    )
    name = thing_name(asked if with_place else replace(asked, place=None), colored=colored)
    return Row(_word(THING, random).format(name), LOGIT if there else -LOGIT)


def spoilt_exercise(drawn: Pool, i: int, random: np.random.Generator) -> Row | None:
    """Whether an object is there that is smeared, stretched or half of another kind, as what is moved by force is."""
    things = things_of(drawn.scenes, i)
    if not things:
        return None
    j = int(random.integers(len(things)))
    asked = things[j][0]
    if sum(t.kind == asked.kind and t.color == asked.color for t, _, _ in things) > 1:
        return None
    row = Row(_word(THING, random).format(thing_name(replace(asked, place=None), colored=True)), LOGIT)
    if random.random() < WHOLE:
        return row
    one = select_one(drawn.scenes, i)
    match int(random.integers(3)):
        case 0:
            row.smeared, spread = _smear(one, j, float(random.uniform(0, 0.5)), 2 if random.random() < 0.5 else 5)
            row.logit *= 1 - 1.6 * min(1.0, spread / SMEAR)
        case 1:
            row.stretched, wholeness = _stretched(drawn, i, j, random)
            row.logit *= wholeness
        case _:
            kind = (KINDS.index(asked.kind) + int(random.integers(1, 3))) % 3
            row.other, row.other_logit = replace(one, kind=_changed(one.kind, j, kind)), -LOGIT
            row.amounts = _cut(one.boxes()[0, j].tolist(), random)
    return row


def _stretched(drawn: Pool, i: int, j: int, random: np.random.Generator) -> tuple[Stretched, float]:
    """The j-th object of a scene stretched, and what a Yes about it is to be multiplied by, 1 to −0.6."""
    one = select_one(drawn.scenes, i)
    _, x, depth = things_of(one, 0)[j]
    rest = replace(one, kind=_changed(one.kind, j, -1), color=_changed(one.color, j, -1))
    width, height = np.exp(random.normal(0, 0.25, 2)).clip(0.5, 2.0).tolist()
    share = min(1.0, float(np.hypot(np.log(width), np.log(height)) / np.log(STRETCH)))
    return Stretched(rest, x, float(foot_at(torch.tensor(depth))), width, height), 1 - 1.6 * share


def _changed(values: Tensor, j: int, value: float) -> Tensor:
    """[1, 4], the same but for one object."""
    values = values.clone()
    values[0, j] = value
    return values


def _smear(one: Scenes, j: int, amount: float, count: int) -> tuple[list[Scenes], float]:
    """One scene with an object at several depths, and over how many pixels they spread."""
    depths = (torch.linspace(-amount / 2, amount / 2, count) + one.depth[0, j]).clamp(0, 1)
    scenes = [replace(one, depth=_changed(one.depth, j, depth)) for depth in depths.tolist()]
    return scenes, float(foot_at(depths[-1]) - foot_at(depths[0]))


def _cut(box: Sequence[float], random: np.random.Generator) -> Tensor:
    """How much of another kind there is, [128, 128]: evenly, or on one side of a soft cut through the object."""
    if random.random() < 0.5:
        return torch.full((IMAGE_SIZE, IMAGE_SIZE), float(random.uniform(0, 0.6)))
    left, top, right, bottom = box
    upright = random.random() < 0.5
    start, end = (left, right) if upright else (top, bottom)
    at, width, sign = random.uniform(start, end), random.uniform(0.5, 5), random.choice([-1, 1])
    ramp = torch.sigmoid(float(sign) * (torch.arange(IMAGE_SIZE) + 0.5 - float(at)) / float(width))
    return (ramp[None, :] if upright else ramp[:, None]).expand(IMAGE_SIZE, IMAGE_SIZE)


def _asked_thing(things: list[tuple[Thing, float, float]], random: np.random.Generator) -> Thing:
    """One of the things, or one that is like it but for its kind, colour or place."""
    thing = things[random.integers(len(things))][0]
    other = random_thing(random, colored=1.0)
    change = random.random()
    if change < 0.18:
        return replace(thing, color=other.color)
    if change < 0.32:
        return replace(thing, kind=other.kind)
    if change < 0.46:
        return replace(thing, place=PLACES[random.integers(6)])
    if change < 0.54:
        return replace(other, place=PLACES[random.integers(6)])
    return thing


def scene_words(scenes: Scenes, i: int) -> Words:
    """What one scene shows, every object at its nearest place, far ones first, and the time of day."""
    things = sorted((t for t, _, _ in things_of(scenes, i)), key=lambda t: PLACES.index(t.place))  # type: ignore[arg-type]
    return Words(tuple(things), TIMES[int(scenes.time[i])])


def next_step(there: Sequence[Thing], wanted: Sequence[Thing]) -> str:
    """The instruction that comes next on the way from what is there to what is wanted, every wanted thing placed."""
    by_place = {t.place: t for t in there}
    for thing in wanted:
        old = by_place.get(thing.place)
        if old is None:
            return f"add {caption(Words((thing,)))}"
        if old.kind == thing.kind and old.color != thing.color:
            return f"make the {thing_name(replace(old, color=DEFAULT_COLOR[old.kind]))[2:]} {thing.color}"
        if old != thing:
            return f"change the {thing_name(old)[2:]} to {thing_name(replace(thing, place=None))}"
    places = {t.place for t in wanted}
    for thing in there:
        if thing.place not in places:
            return f"remove the {thing_name(thing)[2:]}"
    return NOTHING


def text_exercise(drawn: Pool, i: int, random: np.random.Generator) -> Row:
    words = scene_words(drawn.scenes, i)
    topic = random.random()
    if topic < 0.3 and (row := _point_row(drawn, i, random)):
        return row
    if topic < 0.6:
        return Row(DESCRIBE, text=caption(words))
    wanted = list(words.things)
    for _ in range(int(random.choice(3, p=[0.25, 0.45, 0.3]))):
        change = random.random()
        if wanted and change < 0.25:
            wanted.pop(int(random.integers(len(wanted))))
        elif wanted and change < 0.5:
            j = int(random.integers(len(wanted)))
            other = random_thing(random)
            wanted[j] = replace(
                wanted[j], color=other.color, kind=wanted[j].kind if random.random() < 0.5 else other.kind
            )
        elif len(wanted) < 4:
            free = [p for p in PLACES if p not in {t.place for t in wanted}]
            wanted.append(replace(random_thing(random), place=free[int(random.integers(len(free)))]))
    wanted.sort(key=lambda t: PLACES.index(t.place))  # type: ignore[arg-type]
    return Row(NEXT.format(caption(Words(tuple(wanted)))), text=next_step(words.things, wanted))


def exercise(drawn: Pool, i: int, random: np.random.Generator, hardened: bool) -> Row:
    """A question that Yes or No answers."""
    topic = random.random()
    if hardened and topic > 0.75 and (row := spoilt_exercise(drawn, i, random)):
        return row
    if topic < 0.14 and int((drawn.scenes.kind[i] >= 0).sum()):
        return _line_row(drawn, i, random)
    if topic < (0.44 if hardened else 0.52) and (row := _depth_row(drawn, i, random)):
        return row
    if topic < 0.62 and (row := layout_exercise(drawn, i, random, hardened)):
        return row
    if topic < 0.68:
        return _guard_row(drawn, i, random)
    return _fact_row(drawn, i, random)
