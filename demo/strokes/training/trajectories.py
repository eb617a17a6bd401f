"""Trajectories that the second world's critic learns from: painted with it as the inspector, and exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ....critics import load_critic
from ....process import Plan, Settings, Stroke, paint
from ....process.files import CHATS, save_chats, save_painting
from ....process.painting import Painting
from ....process.states import ADD
from ...training.common import Run
from ..captions import PLACES, parse_prompt, thing_name
from ..compositions import CATEGORIES, all_wanted, wanted_prompts
from ..process import SETTINGS, StrokesThinker, load_painter, plan_of, slot
from ..world import COLORS, KINDS, MOST_OBJECTS, Thing
from .words import numpy_generator, random_prompt

OF_CATEGORIES = 0.6  # share of prompts that are drawn as the benchmark's are, the rest has every form
EACH = 60  # prompts of a category to draw from
COUNTS = (0.02, 0.2, 0.28, 0.25, 0.25)  # shares of prompts of nothing to four objects
INSPECTED, UNINSPECTED, ONE_PASS = 0.3, 0.2, 0.15  # shares of ways; the rest are strokes that go wrong by intent

DrawPrompt = Callable[[np.random.Generator], str]


def training_prompts() -> DrawPrompt:
    """Draws prompts of all categories, and of every other form; none that the benchmark asks."""
    held_out = {one.prompt for one in all_wanted()}
    drawn = [[one.prompt for one in wanted_prompts(category, EACH, seed=1)] for category in CATEGORIES]
    known = [rest for prompts in drawn if (rest := [prompt for prompt in prompts if prompt not in held_out])]

    def draw(random: np.random.Generator) -> str:
        if random.random() < OF_CATEGORIES:
            prompts = known[random.integers(len(known))]
            return prompts[random.integers(len(prompts))]
        while (prompt := random_prompt(random, COUNTS)[0]) in held_out:
            pass
        return prompt

    return draw


class Careless(StrokesThinker):
    """Carries out what it is told, right or wrong."""

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        return stroke.instruction


def flawed(plan: Plan, random: np.random.Generator) -> Plan:
    """The same facts, but strokes that bring about something else: another colour or kind, a twin at another place,
    one object too many or too few."""
    made = {stroke.id: parse_prompt(stroke.instruction).things[0] for stroke in plan.strokes}
    for number in range(int(random.integers(1, 3))):
        free = [place for place in PLACES if place not in {thing.place for thing in made.values()}]
        if not made:
            break
        name = list(made)[random.integers(len(made))]
        thing, place = made[name], free[random.integers(len(free))]
        match int(random.integers(5)):
            case 0:
                made[name] = replace(thing, color=COLORS[random.integers(4)])
            case 1:
                made[name] = replace(thing, kind=KINDS[random.integers(3)])
            case 2:
                made[name] = replace(thing, place=place)
            case 3 if len(made) < MOST_OBJECTS:
                made[f"twin{number}"] = replace(thing, place=place)
            case _:
                del made[name]
    facts = tuple(fact if fact.stroke in made else replace(fact, stroke=None) for fact in plan.facts)
    return replace(plan, facts=facts, strokes=tuple(_stroke(name, thing) for name, thing in made.items()))


def _stroke(name: str, thing: Thing) -> Stroke:
    assert thing.place is not None
    return Stroke(name, ADD, f"add {thing_name(thing)}", thing_name(thing), slot(thing.place))


def paint_trajectories(run: Run, weights: Path, folder: Path, count: int) -> list[Path]:
    """Paints and exports them, or goes on where an earlier run stopped; the folders of `save_painting`.

    Some are inspected, some not; some are one pass of the whole prompt; of the rest some strokes are wrong by intent.
    """
    folders = [folder / f"{number:05}" for number in range(count)]
    if all((one / CHATS).exists() for one in folders):
        return folders
    painter, thinker = load_painter(weights / "pipeline"), Careless(load_critic(weights / "critic", device="cpu"))
    draw = training_prompts()
    for number, one in enumerate(folders):
        if (one / CHATS).exists():
            continue
        random = numpy_generator(run.generator("process-trajectory", number))
        plan, settings = _drawn(draw(random), random)

        def keep(painting: Painting, one: Path = one) -> None:
            save_painting(painting, one, last_step_only=True)

        painting = paint(plan, painter, thinker, settings, seed=int(random.integers(2**31)), on_step=keep)
        keep(painting)
        save_chats(painting.trajectory, one / CHATS)
        if (number + 1) % 50 == 0:
            run.log("process-trajectories", painted=number + 1)
    return folders


def _drawn(prompt: str, random: np.random.Generator) -> tuple[Plan, Settings]:
    plan, way = plan_of(prompt), random.random()
    if way < INSPECTED:
        return plan, SETTINGS
    careless = replace(SETTINGS, inspect=False)
    if way < INSPECTED + UNINSPECTED:
        return plan, careless
    if way < INSPECTED + UNINSPECTED + ONE_PASS:
        draft = replace(plan, description=prompt, strokes=(), facts=tuple(replace(f, stroke=None) for f in plan.facts))
        return draft, replace(careless, whole_draft=True)
    return flawed(plan, random), careless
