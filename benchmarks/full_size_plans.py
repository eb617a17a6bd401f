"""Where the weights of a step are, how they are kept, and what such a step may need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Part:
    """Of a plan: the generator's or the critic's.

    Attributes:
        weights: "bf16", or what they are quantised to.
        place: "resident" on the card; "in its turn", there only while it works; or "streamed", there block by block.
        checkpoints: whether the backward pass computes each block again.
    """

    weights: Literal["bf16", "8bit", "4bit", "fp8"] = "bf16"
    place: Literal["resident", "in its turn", "streamed"] = "resident"
    checkpoints: bool = False


@dataclass(frozen=True)
class Plan:
    """Of both parts. With two cards, the critic has the second one."""

    generator: Part = Part()
    critic: Part = Part()
    cards: int = 1

    @property
    def turns(self) -> bool:
        """Whether the generator makes room for the critic."""
        return self.generator.place != "resident"


def _both(part: Part) -> Plan:
    return Plan(part, part)


CHECKPOINTED, STREAMED = Part(checkpoints=True), Part(place="streamed", checkpoints=True)
PLANS = {
    "resident": Plan(),
    "generator checkpointed": Plan(generator=CHECKPOINTED),
    "checkpointed": _both(CHECKPOINTED),
    "turns": _both(Part(place="in its turn")),
    "turns, checkpointed": _both(Part(place="in its turn", checkpoints=True)),
    "streamed": _both(STREAMED),
    "critic streamed": Plan(CHECKPOINTED, STREAMED),
    "8 bits": _both(Part("8bit")),
    "4 bits": _both(Part("4bit")),
    "8 bits, checkpointed": _both(Part("8bit", checkpoints=True)),
    "4 bits, checkpointed": _both(Part("4bit", checkpoints=True)),
    "8 and 4 bits, checkpointed": Plan(Part("8bit", checkpoints=True), Part("4bit", checkpoints=True)),
    "fp8 and 4 bits, checkpointed": Plan(Part("fp8", checkpoints=True), Part("4bit", checkpoints=True)),
    "8 bits, critic streamed": Plan(Part("8bit", checkpoints=True), STREAMED),
    "4 bits, critic streamed": Plan(Part("4bit", checkpoints=True), STREAMED),
    "4 bits, streamed": _both(Part("4bit", "streamed", checkpoints=True)),
    "two cards, 8 bits and bf16": Plan(Part("8bit"), Part(), cards=2),
    "two cards, 8 bits checkpointed and bf16": Plan(Part("8bit", checkpoints=True), Part(), cards=2),
    "two cards, 4 bits and bf16": Plan(Part("4bit"), Part(), cards=2),
}


@dataclass(frozen=True)
class Row:
    """A step to measure, and its bar in GiB and TFLOP where there is one.

    Attributes:
        card: which one it is for.
    """

    plan: str
    questions: int = 1
    size: int = 512
    generator: str = "flux-schnell"
    critic: str = "qwen2.5-vl-7b"
    card: str = ""
    gib: float | None = None
    tflop: float | None = None


BARS = (
    Row("resident", 1, card="80 GB", gib=53, tflop=56),
    Row("resident", 3, card="80 GB", tflop=57),
    Row("resident", 8, card="80 GB", tflop=59),
    Row("8 and 4 bits, checkpointed", card="24 GB", gib=21.5, tflop=80),
    Row("4 bits, critic streamed", card="16 GB", gib=13),
    Row("4 bits, critic streamed", card="12 GB", gib=10.5),
    Row("streamed", card="8 GB", gib=5),
)
MORE = (
    *(Row(plan) for plan in PLANS),
    *(Row(plan, size=1024) for plan in PLANS),
    *(Row("4 bits, critic streamed", size=size, generator="flux2-dev", card="24 GB") for size in (512, 1024)),
    *(
        Row(plan, generator=generator, critic=critic)
        for generator in ("flux2-klein", "z-image", "qwen-image")
        for critic in ("qwen2.5-vl-7b", "qwen3-vl-4b")
        for plan in ("resident", "streamed", "checkpointed", "8 and 4 bits, checkpointed", "4 bits, critic streamed")
    ),
)
