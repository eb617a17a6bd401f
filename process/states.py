"""The states of a picture that is made step by step: plan, canvas, inspection, and what became of each stroke.

Everything is frozen and goes to JSON and back; pictures travel beside it, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from ..core.errors import ProcessError

VERSION = 1
ADD, CHANGE, REMOVE, MOVE, GLOBAL = OPERATIONS = ("add", "change", "remove", "move", "global")
PENDING, HELD, VIOLATED, LOST, UNJUDGED = STATUSES = ("pending", "held", "violated", "lost", "unjudged")
ACCEPT, REFINE, BACKTRACK, RESTART, STOP = VERDICTS = ("accept", "refine", "backtrack", "restart", "stop")
BY_CRITIC, BY_USER, BY_RULES = SOURCES = ("critic", "user", "rules")
MOST_FACTS, MOST_STROKES = 12, 12


@dataclass(frozen=True)
class Region:
    """A rectangle of the picture, fractions of its width and height from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        sides = (self.left, self.top, self.right, self.bottom)
        if not all(isinstance(s, int | float) and 0 <= s <= 1 for s in sides) or not (
            self.left < self.right and self.top < self.bottom
        ):
            raise ProcessError(
                f"Expected a region as left, top, right, bottom between 0 and 1, left before right and top before "
                f"bottom, got {sides}."
            )

    def meets(self, other: Region) -> bool:
        """Whether both share more than an edge."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class Fact:
    """Something that must be true of the finished picture, as a question to the critic.

    Attributes:
        id: unique within the plan.
        answer: the one that is wanted, "Yes" or "No".
        stroke: the id of the stroke that brings it about; None for what the draft alone is to show.
    """

    id: str
    question: str
    answer: str = "Yes"
    stroke: str | None = None


@dataclass(frozen=True)
class Stroke:
    """One change of the picture.

    Attributes:
        instruction: what is to be done, for an editing model: "add a blue house far left".
        local_prompt: what is to be seen in its region, for an inpainting model: "a blue house".
        region: where; None for the whole picture, or where nobody knows.
    """

    id: str
    operation: str
    instruction: str
    local_prompt: str = ""
    region: Region | None = None


@dataclass(frozen=True)
class Plan:
    """What is wanted, broken into facts that can be asked about and strokes that bring them about.

    Attributes:
        prompt: the user's words.
        description: the whole picture in words, which a draft is made by; the prompt where there is no other.
        background: what is to be there before any stroke; "" where the draft shows everything.
        source: who made it: "critic", "user" or "rules".

    Raises:
        ProcessError: no prompt, ids that are there twice, facts that contradict each other, a fact of a stroke that is
            not there, too many of either, or additions whose regions meet; the message names them.
    """

    prompt: str
    facts: tuple[Fact, ...]
    strokes: tuple[Stroke, ...] = ()
    description: str = ""
    background: str = ""
    source: str = BY_USER

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ProcessError("The prompt is empty: say what the picture is to show.")
        _check(self.source in SOURCES, "a plan's source", ", ".join(SOURCES), self.source)
        if not self.facts:
            raise ProcessError("The plan has no facts, so that nothing could be inspected. Name at least one.")
        for what, things, most in (("facts", self.facts, MOST_FACTS), ("strokes", self.strokes, MOST_STROKES)):
            if len(things) > most:
                raise ProcessError(f"Expected at most {most} {what} in a plan, got {len(things)}: plan fewer at once.")
            ids = [thing.id for thing in things]
            if twice := sorted({i for i in ids if ids.count(i) > 1}):
                raise ProcessError(f"The {what} {', '.join(twice)} are there twice: give each an id of its own.")
        answers: dict[str, Fact] = {}
        for fact in self.facts:
            _check(fact.answer in ("Yes", "No"), f"the answer of {fact.id}", "Yes, No", fact.answer)
            other = answers.setdefault(" ".join(fact.question.lower().split()), fact)
            if other.answer != fact.answer:
                raise ProcessError(
                    f"The facts {other.id} and {fact.id} contradict each other: {fact.question!r} cannot be both Yes "
                    "and No. Leave one of them out."
                )
        known = {stroke.id for stroke in self.strokes}
        if lost := sorted(fact.id for fact in self.facts if fact.stroke is not None and fact.stroke not in known):
            raise ProcessError(f"The facts {', '.join(lost)} belong to strokes that the plan does not have.")
        for stroke in self.strokes:
            _check(
                stroke.operation in OPERATIONS, f"the operation of {stroke.id}", ", ".join(OPERATIONS), stroke.operation
            )
            if not stroke.instruction.strip():
                raise ProcessError(f"The stroke {stroke.id} says nothing: give it an instruction.")
        adds = [stroke for stroke in self.strokes if stroke.operation == ADD and stroke.region is not None]
        for number, stroke in enumerate(adds):
            for other in adds[:number]:
                if stroke.region is not None and other.region is not None and stroke.region.meets(other.region):
                    raise ProcessError(
                        f"The regions of {other.id} and {stroke.id} meet: what is added second would destroy the "
                        "first. Move them apart."
                    )

    def facts_of(self, stroke: str) -> tuple[Fact, ...]:
        """Those that a stroke brings about."""
        return tuple(fact for fact in self.facts if fact.stroke == stroke)


@dataclass(frozen=True)
class Reading:
    """What the critic says of one fact: P(wanted answer) among both answers, and what that means by the ledger.

    "pending": its stroke has not run yet, so that it cannot be wrong. "held". "violated": it should be there, and is
    not. "lost": it was held once. "unjudged": the critic holds it of a blank canvas too, so that it says nothing.
    """

    fact: str
    p: float
    status: str


@dataclass(frozen=True)
class Reflection:
    """What an inspection comes to: readings of all facts, words on those that fail, and what is to be done."""

    readings: tuple[Reading, ...]
    text: str = ""
    verdict: str = ACCEPT
    instruction: str = ""  # of the next attempt, where there is one

    def with_status(self, *statuses: str) -> tuple[str, ...]:
        """Ids of the facts that have one of these."""
        return tuple(reading.fact for reading in self.readings if reading.status in statuses)


@dataclass(frozen=True)
class Step:
    """One stroke on the canvas: what was asked, what came of it, and whether it was kept.

    Attributes:
        stroke: its id; "draft" for the first picture.
        ins, des: the instruction, and the whole scene so far in words.
        picture: the name of the picture that this step made; kept beside the trajectory.
        mask: whether only a region could change.
        keep_psnr: of what lies outside the region, against the picture before, in dB; None without one.
        accepted: whether the canvas went on from this picture.
        passes: of the painter.
    """

    stroke: str
    ins: str
    des: str
    picture: str
    reflection: Reflection
    seed: int
    accepted: bool
    mask: bool = False
    keep_psnr: float | None = None
    passes: int = 1


@dataclass(frozen=True)
class Trajectory:
    """A picture's whole way: the plan, each step, and which canvas is the best.

    Attributes:
        best: the number of the step whose picture is the result.
        passes: of the painter, all together.
        models: names and weights of painter and thinker, as `ModelInfo.to_dict` gives them.
        settings: of `paint`.
        stop_reason: "done" (everything held), "budget", "no gain", "interrupted" or "failed".
    """

    plan: Plan
    steps: tuple[Step, ...]
    best: int
    passes: int
    seed: int
    models: Mapping[str, Any]
    settings: Mapping[str, Any]
    stop_reason: str
    blank: tuple[Reading, ...] = ()

    @property
    def held(self) -> tuple[str, ...]:
        """Facts that the best picture holds."""
        return self.steps[self.best].reflection.with_status(HELD) if self.steps else ()

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Trajectory:
        """Raises ProcessError where the text is no trajectory, or was edited so that it no longer is one."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ProcessError(f"Expected a trajectory as JSON, got text that is none: {error}.") from error
        if not isinstance(data, dict) or "plan" not in data or "steps" not in data:
            raise ProcessError("The file is no trajectory: it has no plan and no steps. Give one that paint() wrote.")
        if data.pop("version", None) != VERSION:
            raise ProcessError(f"The trajectory is of another version; this one reads version {VERSION}.")
        steps = tuple(_step(step) for step in _list(data["steps"], "steps"))
        blank = tuple(_made(Reading, reading) for reading in _list(data.get("blank", []), "blank"))
        made = _made(cls, {**data, "plan": plan_from_dict(data["plan"]), "steps": steps, "blank": blank})
        known = {fact.id for fact in made.plan.facts}
        for reading in (*blank, *(reading for step in steps for reading in step.reflection.readings)):
            _check(reading.fact in known, "the fact of a reading", ", ".join(sorted(known)), reading.fact)
            _check(reading.status in STATUSES, "the status of a reading", ", ".join(STATUSES), reading.status)
        if steps and not (isinstance(made.best, int) and 0 <= made.best < len(steps)):
            raise ProcessError(f"Expected the best step to be one of {len(steps)}, got {made.best!r}.")
        return made


def read_plan(text: str, prompt: str = "") -> Plan:
    """A plan that a user wrote as JSON; `prompt` stands in where it has none. Regions may be lists of four numbers.

    Raises:
        ProcessError: no JSON, or a plan that cannot be followed; the message says why.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ProcessError(f"Expected a plan as JSON, got text that is none: {error}.") from error
    if not isinstance(data, dict):
        raise ProcessError(f"Expected a plan as a JSON object with facts and strokes, got a {type(data).__name__}.")
    return plan_from_dict({"prompt": prompt, **data, "source": BY_USER})


def plan_from_dict(data: Any) -> Plan:
    """A plan from plain data, as JSON gives it.

    Raises:
        ProcessError: a field is missing, unknown or of another type; and as `Plan`.
    """
    if not isinstance(data, dict):
        raise ProcessError(f"Expected a plan as an object with prompt, facts and strokes, got {_short(data)}.")
    facts = tuple(_made(Fact, fact) for fact in _list(data.get("facts", []), "facts"))
    strokes = []
    for stroke in _list(data.get("strokes", []), "strokes"):
        region = stroke.get("region") if isinstance(stroke, dict) else None
        strokes.append(_made(Stroke, {**stroke, "region": _region(region)} if isinstance(stroke, dict) else stroke))
    return _made(Plan, {**data, "facts": facts, "strokes": tuple(strokes)})


def _region(data: Any) -> Any:
    """A region of an object or of left, top, right, bottom; what is neither is left to be refused."""
    if isinstance(data, list):
        if len(data) != len(fields(Region)):
            raise ProcessError(f"Expected a region as [left, top, right, bottom], got {data!r}.")
        return Region(*data)
    return _made(Region, data) if isinstance(data, dict) else data


def _step(data: Any) -> Step:
    if not isinstance(data, dict) or not isinstance(data.get("reflection"), dict):
        raise ProcessError(f"Expected a step with its reflection, got {_short(data)}.")
    reflection = data["reflection"]
    readings = tuple(_made(Reading, reading) for reading in _list(reflection.get("readings"), "readings"))
    return _made(Step, {**data, "reflection": _made(Reflection, {**reflection, "readings": readings})})


def _made(kind: Any, data: Any) -> Any:
    """An object of plain data whose fields are all known, there, and of their own types."""
    name = kind.__name__.lower()
    if not isinstance(data, dict):
        raise ProcessError(f"Expected a {name} as an object, got {_short(data)}.")
    known = {field.name: field for field in fields(kind)}
    if strange := sorted(set(data) - set(known)):
        raise ProcessError(f"A {name} has no field {', '.join(strange)}; it has {', '.join(known)}.")
    for field_name, value in data.items():
        wanted = _TYPES.get(str(known[field_name].type))
        if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            raise ProcessError(f"Expected {field_name} of a {name} as {known[field_name].type}, got {_short(value)}.")
    if lacking := [n for n, field in known.items() if n not in data and field.default is MISSING]:
        raise ProcessError(f"A {name} lacks {', '.join(lacking)}: add what is missing to {_short(data)}.")
    return kind(**data)


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "int": (int,),
    "bool": (bool,),
    "Region | None": (Region, type(None)),
}


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ProcessError(f"Expected {name} as a list, got {_short(value)}.")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _check(good: bool, what: str, expected: str, got: Any) -> None:
    if not good:
        raise ProcessError(f"Expected {what} to be one of {expected}, got {got!r}.")
