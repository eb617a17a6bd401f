"""A painter of slots and a thinker that reads them: pictures are 4 × 16, four columns of pixels a slot."""

from __future__ import annotations

import numpy as np
import torch

from dual_process.core.protocols import ModelInfo
from dual_process.process import Canvas, Fact, Plan, Region, Stroke

SLOTS = 4
INFO = ModelInfo("fake", "Fake", "float32", "0" * 64)


def slot(stroke: str) -> int:
    return int(stroke[-1])


def region(number: int) -> Region:
    return Region(number / SLOTS, 0, (number + 1) / SLOTS, 1)


def plan(count: int = 3, **changes) -> Plan:
    """A thing in each of the first slots."""
    facts = tuple(Fact(f"f{n}", f"Is there a thing in slot {n}?", stroke=f"s{n}") for n in range(count))
    strokes = tuple(Stroke(f"s{n}", "add", f"add a thing in slot {n}", "a thing", region(n)) for n in range(count))
    return Plan(**{"prompt": "things", "facts": facts, "strokes": strokes, "description": "things", **changes})


def picture_of(things: dict[int, float]) -> torch.Tensor:
    picture = torch.full((1, 3, 4, 4 * SLOTS), 64 / 255)
    for number, strength in things.items():
        picture[..., 4 * number : 4 * number + 4] = strength
    return picture


class SlotPainter:
    """Each stroke succeeds with a chance; some spoil another slot or everything.

    Args:
        chance: that a stroke comes out.
        spoils: strokes by id that empty another slot, {stroke: slot}.
        drafted: slots that the draft fills.
    """

    info = INFO
    keeps_outside = True

    def __init__(self, chance=1.0, spoils=None, drafted=(), fail_at=None):
        self.chance, self.spoils, self.drafted, self.fail_at = chance, spoils or {}, drafted, fail_at
        self.calls = []

    def draft(self, prompt, seed):
        return self._made("draft", prompt, dict.fromkeys(self.drafted, 1.0))

    def stroke(self, canvas, stroke, seed):
        things = {number: 1.0 for number in canvas.latent.nonzero()[:, 0].tolist()}
        if np.random.default_rng(seed).random() < self.chance:
            things[slot(stroke.id)] = 1.0
        if stroke.id in self.spoils:
            things.pop(self.spoils[stroke.id], None)
        return self._made(stroke.id, stroke.instruction, things)

    def _made(self, name, text, things):
        self.calls.append((name, text))
        if len(self.calls) == self.fail_at:
            raise MemoryError("full")
        latent = torch.zeros(SLOTS)
        latent[list(things)] = 1.0
        return Canvas(latent, picture_of(things))


class SlotThinker:
    """Reads the slots exactly, or gives one answer to all; counts what it was asked."""

    info = INFO
    control = Fact("blank", "Is there nothing?")

    def __init__(self, made=None, always=None):
        self.made, self.always, self.reflected = made or plan(), always, []

    def plan(self, prompt):
        return self.made

    def conflict(self, stroke, scene, prompt):
        return stroke.instruction

    def read(self, picture, facts):
        if self.always is not None:
            return [self.always] * len(facts)
        values = [
            float(picture.std() == 0) if f == self.control else float(picture[..., 4 * slot(f.id) :][..., :4].mean())
            for f in facts
        ]
        return [0.95 if value > 0.9 else 0.05 for value in values]

    def reflect(self, picture, failing, failed, prompt):
        self.reflected.append(([fact.id for fact in failing], tuple(failed)))
        return f"missing: {', '.join(fact.id for fact in failing)}", f"{failed[-1]}, please"
