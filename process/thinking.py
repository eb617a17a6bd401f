"""Thinkers: any critic that reads pictures and writes JSON, and rules where none can plan."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ProcessError
from ..core.picture import Picture
from ..core.protocols import Critic, ModelInfo
from .replies import ToRegion, fractions_of, plan_from_reply, read_object
from .states import ADD, BY_RULES, MOST_FACTS, Fact, Plan, Stroke

SIDE = 504  # pixels of the canvas that a plan is made on: whole patches of every Qwen-VL, so that it is not resized
MOST_TOKENS = 1024
PLAN = """Plan a picture of: "{prompt}".
Reply with one JSON object and nothing else:
{{"description": "the whole picture in one sentence",
"background": "what is there before anything is added",
"strokes": [{{"id": "s1", "operation": "add", "instruction": "what is to be done", "local_prompt": "what is then \
to be seen there", "region": [left, top, right, bottom]}}],
"facts": [{{"id": "f1", "question": "a question that Yes or No answers", "answer": "Yes", "stroke": "s1"}}]}}
A stroke adds one thing. A fact asks one thing: that it is there, its color, its number, or where it is. Leave \
nothing of the prompt out and add nothing to it. Regions {boxes} and do not meet. At most 12 facts."""
AGAIN = "\nYour last reply could not be used: {error} Reply with the JSON object alone."
CONFLICT = """A picture shows: {scene}. It is to show in the end: "{prompt}". The next step is: "{instruction}".
Reply with one JSON object: {{"fits": true or false, "instruction": "the step, corrected if it does not fit"}}"""
REFLECT = """The picture is to show: "{prompt}". This is not true of it yet:
{failing}
{tried}Reply with one JSON object: {{"wrong": "what is wrong, in one sentence", "instruction": "one instruction that \
mends it"}}"""
TRIED = "These instructions were tried and did not help:\n{}\nFind another.\n"
CONTROL = Fact("blank", "Is the image one plain color, with nothing in it?")
# How models write rectangles, by the beginning of their class's name.
CONVENTIONS: dict[str, tuple[str, float]] = {
    "Qwen2_5_VL": (f"are pixels of a picture of {SIDE} × {SIDE}", SIDE),
    "Qwen2VL": ("are relative, from 0 to 1000", 1000),
    "Qwen3": ("are relative, from 0 to 1000", 1000),
}
OTHERS = ("are fractions of the width and height, from 0 to 1", 1.0)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    text: str
    answer: str
    references: tuple[Picture, ...] = ()


class CriticThinker:
    """A critic that plans, inspects and reflects.

    Args:
        critic: any that answers about pictures.
        rules: whether a plan by rules takes the place of one that cannot be read; it says so in `Plan.source`.
        max_new_tokens: of a reply.
    """

    def __init__(self, critic: Critic, rules: bool = True, max_new_tokens: int = MOST_TOKENS) -> None:
        self.critic, self.rules, self.max_new_tokens = critic, rules, max_new_tokens
        found = (of for name, of in CONVENTIONS.items() if critic.info.architecture.startswith(name))
        self._boxes, side = next(found, OTHERS)
        self._to_region: ToRegion = fractions_of(side, side)

    @property
    def info(self) -> ModelInfo:
        return self.critic.info

    @property
    def control(self) -> Fact | None:
        return CONTROL

    def plan(self, prompt: str) -> Plan:
        """Asked twice: the second time with what was wrong.

        Raises:
            ProcessError: an empty prompt, or, without `rules`, two replies that are no plan.
        """
        if not prompt.strip():
            raise ProcessError("The prompt is empty: say what the picture is to show.")
        text = PLAN.format(prompt=prompt, boxes=self._boxes)
        error = None
        for again in ("", AGAIN):
            reply = self._reply(torch.full((1, 3, SIDE, SIDE), 0.5), text + again.format(error=error))
            try:
                return plan_from_reply(prompt, reply, self._to_region)
            except ProcessError as refused:
                error = refused
        if not self.rules:
            raise ProcessError(f"The critic made no plan of {prompt!r}: {error}") from error
        log.warning("The critic made no plan of %r (%s), so rules did.", prompt, error)
        return plan_by_rules(prompt)

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        text = CONFLICT.format(scene=scene, prompt=prompt, instruction=stroke.instruction)
        said = self._object(torch.full((1, 3, SIDE, SIDE), 0.5), text)
        instruction = said.get("instruction")
        fits = said.get("fits", True) is not False
        return (
            instruction.strip()
            if not fits and isinstance(instruction, str) and instruction.strip()
            else stroke.instruction
        )

    def read(self, picture: Tensor, facts: Sequence[Fact]) -> list[float]:
        asked = [_Asked(fact.question, answer) for answer in ("Yes", "No") for fact in facts]
        with torch.no_grad():
            both = self.critic.log_likelihood(picture, asked)[0].float().reshape(2, len(facts)).softmax(dim=0)
        yes, no = both.tolist()
        return [y if fact.answer == "Yes" else n for fact, y, n in zip(facts, yes, no, strict=True)]

    def reflect(self, picture: Tensor, failing: Sequence[Fact], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        lines = "\n".join(f"- {fact.question} It should be {fact.answer}." for fact in failing)
        tried = TRIED.format("\n".join(f"- {text}" for text in failed)) if failed else ""
        said = self._object(picture, REFLECT.format(prompt=prompt, failing=lines, tried=tried))
        wrong, instruction = (said.get(name) for name in ("wrong", "instruction"))
        text = (
            wrong
            if isinstance(wrong, str) and wrong.strip()
            else f"Not true yet: {'; '.join(f.question for f in failing)}"
        )
        return text, instruction if isinstance(instruction, str) and instruction.strip() else failed[-1]

    def _reply(self, picture: Tensor, text: str) -> str:
        return self.critic.answer(picture, text, self.max_new_tokens)[0]

    def _object(self, picture: Tensor, text: str) -> dict[str, object]:
        """What a reply says; nothing where it is no object: then the process goes on as it would without."""
        try:
            return read_object(self._reply(picture, text))
        except ProcessError as error:
            log.info("%s", error)
            return {}


_PARTS = re.compile(r",| and | with | beside | next to | behind | in front of | left of | right of | on | under ")


def plan_by_rules(prompt: str) -> Plan:
    """A fall-back: each part of a prompt, between commas and the likes of "and", is one thing that is to be there."""
    parts = [part for part in (part.strip(" .") for part in _PARTS.split(f"{prompt} ")) if part][:MOST_FACTS]
    if not parts:
        raise ProcessError(f"Rules find nothing in the prompt {prompt!r}. Write a plan of your own.")
    parts = list(dict.fromkeys(parts))
    strokes = tuple(Stroke(f"s{n}", ADD, f"add {part}", part) for n, part in enumerate(parts, start=1))
    facts = tuple(
        Fact(f"f{n}", f"Is there {part} in the image?", stroke=f"s{n}") for n, part in enumerate(parts, start=1)
    )
    return Plan(prompt, facts, strokes, source=BY_RULES)


def dumps(plan: Plan) -> str:
    """As `PLAN` asks for it: for training planners."""
    strokes = [
        {
            **{name: getattr(s, name) for name in ("id", "operation", "instruction", "local_prompt")},
            **({} if s.region is None else {"region": list(vars(s.region).values())}),
        }
        for s in plan.strokes
    ]
    facts = [{name: getattr(f, name) for name in ("id", "question", "answer", "stroke")} for f in plan.facts]
    return json.dumps(
        {"description": plan.description, "background": plan.background, "strokes": strokes, "facts": facts}
    )
