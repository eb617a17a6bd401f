"""The second world for the process: its generator as a painter, and its critic, or the truth, as a thinker."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.errors import ProcessError
from ...core.protocols import ModelInfo
from ...process import CriticThinker, Fact, Plan, Region, Settings, Stroke
from ...process.states import ADD, BY_CRITIC, BY_RULES
from . import WEIGHTS
from .captions import COUNTS, EMPTY, PLACES, caption, parse_prompt, place_name, thing_name
from .compositions import APART, things_there
from .models import PROMPT_LENGTH
from .questions import COUNT, FITS, NEXT, PLAN, RELATIONS, THING, TIME
from .reader import read_scenes
from .world import COLORS, COLUMNS, IMAGE_SIZE, KINDS, TIMES, Thing, Words

if TYPE_CHECKING:
    from ...critics import TransformersCritic
    from ...painters.diffusers import FluxPainter

# An empty field and one object after the other, since whole pictures of many objects seldom come out.
SETTINGS = Settings(budget=6, whole_draft=False, restarts=0)
_HALF_WIDTH, _ROWS = (
    16.0,
    ((16.0, 64.0), (80.0, 128.0)),
)  # pixels: of a slot, and top and bottom of a far and a near one
_AS_LAID_OUT = {1: (4,), 2: (3, 5), 3: (3, 4, 5), 4: (0, 2, 3, 5)}  # places of objects that have none, by their number
_GREY = torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), 0.5)  # what is planned has no picture yet
log = logging.getLogger(__name__)


def load_painter(folder: str | Path = WEIGHTS / "pipeline", by_regions: bool = False) -> FluxPainter:
    """The second world's generator as an editor of its own pictures: one sampler step, 128 × 128, float32.

    Args:
        by_regions: it is no editor then, but paints regions anew.
    """
    from ...painters.diffusers import load_inpaint, load_kontext

    load = load_inpaint if by_regions else load_kontext
    return load(
        folder,
        device="cpu",
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        steps=1,
        guidance=0.0,
        max_sequence_length=PROMPT_LENGTH,
    )


def load_process_critic(folder: str | Path = WEIGHTS) -> TransformersCritic:
    """The critic of `strokes.load` with the adapter beside it merged in, float32 on the CPU: for `TaughtThinker`.

    It has learnt from trajectories to inspect, to plan and to see conflicts. What it says of overlays has changed a
    little: controls are measured with the critic of `strokes.load`.

    Args:
        folder: where `critic/` and `process/` lie.
    """
    from peft import PeftModel

    from ...critics import TransformersCritic
    from ...critics.loading import load_model, load_processor

    critic = Path(folder) / "critic"
    model = load_model(critic, torch.device("cpu"), torch.float32, None)
    model = PeftModel.from_pretrained(model, Path(folder) / "process").merge_and_unload()
    return TransformersCritic(model.eval().requires_grad_(False), load_processor(critic), "the demo's process critic")


def slot(place: tuple[int, int]) -> Region:
    """The rectangle that belongs to a place: 32 × 48 pixels, on the grid of latent tokens."""
    middle, (top, bottom) = COLUMNS[place[0]], _ROWS[place[1]]
    sides = (middle - _HALF_WIDTH, top, middle + _HALF_WIDTH, bottom)
    return Region(*(side / IMAGE_SIZE for side in sides))


def placed(words: Words) -> Words:
    """The same things, each at a place of its own: where the prompt says, else from left to right."""
    taken = {thing.place for thing in words.things}
    free = [place for place in PLACES if place not in taken]
    if not any(taken) and len(words.things) in _AS_LAID_OUT:
        free = [PLACES[number] for number in _AS_LAID_OUT[len(words.things)]]
    things = tuple(thing if thing.place else replace(thing, place=free.pop(0)) for thing in words.things)
    return replace(words, things=things)


def plan_of(prompt: str, as_said: bool = False, described: Words | None = None) -> Plan:
    """What the world's grammar makes of a prompt: a stroke and a fact for each object, numbers, order, time of day.

    Args:
        as_said: whether facts name no place that the prompt does not: for pictures that are made in one pass.
        described: the same things as the critic placed them; else the grammar does.

    Raises:
        ProcessError: nothing of the world in it, or two objects at one place.
    """
    said = parse_prompt(prompt)
    words = described or placed(said)
    if not words.things and words.time is None and EMPTY not in prompt:
        raise ProcessError(f"Expected a prompt of this world, such as 'a blue house and two trees', got {prompt!r}.")
    places = Counter(thing.place for thing in words.things)
    if crowded := [place_name(place) for place, count in places.items() if place and count > 1]:
        raise ProcessError(f"The prompt puts two objects at one place, {', '.join(crowded)}: move one of them.")
    strokes, facts = [], []
    for number, (thing, as_asked) in enumerate(zip(words.things, said.things, strict=True), start=1):
        assert thing.place is not None
        name = thing_name(thing)
        strokes.append(Stroke(f"s{number}", ADD, f"add {name}", name, slot(thing.place)))
        asked = thing_name(as_asked if as_said else thing, colored=True)
        facts.append(Fact(f"f{number}", THING[0].format(asked), stroke=f"s{number}"))
    last = strokes[-1].id if strokes else None
    for kind, count in Counter(thing.kind for thing in words.things).items():
        if count > 1:
            facts.append(Fact(f"{kind}s", COUNT[0].format(f"{COUNTS[count]} {kind}s"), stroke=last))
    relation = next((name for name in RELATIONS if f" {name} " in prompt), None)
    if relation is not None and len(words.things) == 2:
        name, pair = relation, words.things
        if relation == "right of":
            pair = pair[::-1]
        facts.append(Fact("order", RELATIONS[name].format(*(_alone(thing) for thing in pair)), stroke=last))
    if words.time is not None:
        facts.append(Fact("time", TIME[0].format(words.time)))
    background = caption(Words((), words.time))
    source = BY_RULES if described is None else BY_CRITIC
    return Plan(prompt, tuple(facts or _empty()), tuple(strokes), caption(words), background, source)


def _empty() -> list[Fact]:
    """Of a field on which nothing stands."""
    return [Fact(kind, THING[0].format(f"a {kind}"), "No") for kind in KINDS]


def _alone(thing: Thing) -> str:
    return thing_name(replace(thing, place=None), "the", colored=True)


class StrokesThinker(CriticThinker):
    """The second world's critic, which looks and says what comes next; plans are made by the world's grammar."""

    control = None  # the world has no word for nothing

    def plan(self, prompt: str) -> Plan:
        return plan_of(prompt)

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        """An instruction to add what the prompt has elsewhere, or otherwise, is corrected to what belongs there."""
        return _corrected(stroke.instruction, self._wanted(prompt))

    def _wanted(self, prompt: str) -> Words:
        """What is planned for a prompt."""
        return placed(parse_prompt(prompt))

    def reflect(self, picture: Tensor, failing: Sequence[Fact], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        """What is not true yet, and the critic's own next step towards the planned picture.

        A step that belongs to another place than the failing facts cannot mend them: then the last one is repeated.
        """
        text = f"Not true yet: {'; '.join(fact.question for fact in failing)}"
        said = self._reply(picture, ask_next(self._wanted(prompt))).strip()
        names = [place_name(place) for place in PLACES]
        here = any(name in said and any(name in fact.question for fact in failing) for name in names)
        return text, said if here else failed[-1]


class TaughtThinker(StrokesThinker):
    """The second world's critic after its lesson in the process: it plans, and sees conflicts, by itself.

    The grammar only reads what it wrote, and plans where that is not what the prompt says: `Plan.source` tells.
    """

    _planned: tuple[str, Words | None] = ("", None)  # the last prompt, and what was planned for it

    def plan(self, prompt: str) -> Plan:
        by_rules = plan_of(prompt)
        if (words := self._placed(prompt)) is not None:
            return plan_of(prompt, described=words)
        log.warning("The critic made no plan of %r, so rules did.", prompt)
        return by_rules

    def describe(self, prompt: str) -> str:
        """The planned picture in the critic's words, everything at a place of its own."""
        return self._reply(_GREY, PLAN.format(prompt)).strip().replace(" ,", ",")

    def fits(self, instruction: str, description: str) -> bool:
        """Whether the critic takes an instruction for a step of a planned picture."""
        return self.read(_GREY, [Fact("fits", FITS.format(instruction, description))])[0] >= 0.5

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        """To add what the critic says does not fit its plan is corrected to what it has planned at that place."""
        if not stroke.instruction.startswith("add ") or not parse_prompt(stroke.instruction).things:
            return stroke.instruction
        wanted = self._wanted(prompt)
        fits = self.fits(stroke.instruction, caption(wanted))
        return stroke.instruction if fits else _corrected(stroke.instruction, wanted)

    def _wanted(self, prompt: str) -> Words:
        return self._placed(prompt) or super()._wanted(prompt)

    def _placed(self, prompt: str) -> Words | None:
        """What the critic's description places; None where it is not all that the prompt says, and no more."""
        if prompt != self._planned[0]:
            self._planned = (prompt, _fitting(self.describe(prompt), prompt))
        return self._planned[1]


def _fitting(description: str, prompt: str) -> Words | None:
    """The words of a description that places all that a prompt says, and no more; else None."""
    said, words = parse_prompt(prompt), parse_prompt(description)
    places = [thing.place for thing in words.things if thing.place is not None]
    if len(set(places)) != len(said.things) or len(words.things) != len(said.things) or words.time != said.time:
        return None
    pairs = list(zip(said.things, words.things, strict=True))
    same = all(_alike(wanted, thing) and wanted.place in (None, thing.place) for wanted, thing in pairs)
    from_left = places == sorted(places) or not any(f" {name} " in prompt for name in ("left of", "right of"))
    return words if same and from_left else None


class OracleThinker:
    """Reads pictures without a critic: what a perfect inspector would reach. Plans as `StrokesThinker`."""

    info = ModelInfo("scene reader", "procedural", "float64", "")
    control = None

    def plan(self, prompt: str) -> Plan:
        return plan_of(prompt)

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        return _corrected(stroke.instruction, placed(parse_prompt(prompt)))

    def read(self, picture: Tensor, facts: Sequence[Fact]) -> list[float]:
        reading = read_scenes(picture)
        there, time = things_there(reading, 0), TIMES[int(reading.time[0])]
        return [float(is_true(fact.question, there, time) == (fact.answer == "Yes")) for fact in facts]

    def reflect(self, picture: Tensor, failing: Sequence[Fact], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        return f"Not true yet: {'; '.join(fact.question for fact in failing)}", failed[-1]


def _corrected(instruction: str, wanted: Words) -> str:
    """What is to be added at the same place, where things are wanted at places of their own."""
    asked = parse_prompt(instruction).things
    here = [thing for thing in wanted.things if asked and thing.place == asked[0].place]
    wrong = instruction.startswith("add ") and here and here[0] != asked[0]
    return f"add {thing_name(here[0])}" if wrong else instruction


def is_true(question: str, there: Sequence[tuple[Thing, float, float]], time: str) -> bool:
    """Whether Yes is right for one of the questions that `plan_of` asks.

    Args:
        there: what stands in the picture, each with its x in pixels and its depth.
        time: of day.
    """
    asked = parse_prompt(question).things
    if not asked:
        return question == TIME[0].format(time)
    if any(f" {relation} " in question for relation in RELATIONS):
        first, second = ([found for found in there if _alike(found[0], thing)] for thing in asked)
        if " behind " in question:
            return any(b[2] > a[2] for a in first for b in second)
        return any(b[1] - a[1] > APART for a in first for b in second)  # parsed from left to right
    if len(asked) > 1:  # "Are there two houses in the image?"
        return sum(thing.kind == asked[0].kind for thing, *_ in there) == len(asked)
    if not any(color in question for color in COLORS):
        return any(thing.kind == asked[0].kind for thing, *_ in there)
    return any(_alike(thing, asked[0]) and asked[0].place in (None, thing.place) for thing, *_ in there)


def truths(plan: Plan, picture: Tensor) -> dict[str, bool]:
    """Which facts of a plan are true of a picture [1, 3, 128, 128], by the scene reader and not by a critic."""
    reading = read_scenes(picture)
    there, time = things_there(reading, 0), TIMES[int(reading.time[0])]
    return {fact.id: is_true(fact.question, there, time) == (fact.answer == "Yes") for fact in plan.facts}


def planned(words: Words) -> list[Thing]:
    """The things of `placed` words in the order of the places."""
    return sorted(placed(words).things, key=lambda thing: PLACES.index(thing.place))  # type: ignore[arg-type]


def ask_next(words: Words) -> str:
    """Asks what the next step is towards the things of a prompt."""
    return NEXT.format(caption(Words(tuple(planned(words)))))


def _alike(one: Thing, other: Thing) -> bool:
    return (one.kind, one.color) == (other.kind, other.color)
