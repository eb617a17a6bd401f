"""Where weights and activations are in a step, what a device then holds at most, and which plan fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import DualProcessError
from ..core.sizes import ModelSize
from ..core.streaming import Offload
from .asking import Asked, group_questions
from .question import PROMPT, Question
from .recipe import SAMPLED, Recipe

GB = 1e9
OVERHEAD = 0.04  # of what is held: blocks of the allocator that are partly used
CONTEXT = int(0.5e9)  # bytes that CUDA itself takes
MOMENTS, GRADIENT = 3, 1  # how often a LoRA's bytes are held: itself with AdamW's two moments, and its gradient
BANDWIDTH = 25e9  # bytes a second to the device: PCIe 4
SPEED = 100e12  # operations a second


class TooSmall(DualProcessError):
    """No plan fits the device."""


@dataclass(frozen=True)
class Place:
    """How one model lies: see `load_generator` and `load_critic`."""

    offload: Offload = False
    checkpointing: bool = False

    @property
    def words(self) -> str:
        where = {False: "resident", True: "in its turn", "blocks": "streamed"}[self.offload]
        return f"{where} and checkpointed" if self.checkpointing and self.offload is False else where


@dataclass(frozen=True)
class MemoryPlan:
    """How generator and critics share a device; all plans give the same numbers."""

    name: str
    generator: Place = Place()
    critic: Place = Place()
    take_turns: bool = False


PLANS = (
    MemoryPlan("resident"),
    MemoryPlan("generator checkpointed", Place(checkpointing=True)),
    MemoryPlan("checkpointed", Place(checkpointing=True), Place(checkpointing=True)),
    MemoryPlan("critic streamed", Place(checkpointing=True), Place("blocks", True)),
    MemoryPlan("generator streamed", Place("blocks", True), Place(checkpointing=True)),
    MemoryPlan("turns", Place(True, True), Place(True, True), take_turns=True),
    MemoryPlan("turns, generator streamed", Place("blocks", True), Place(True, True), take_turns=True),
    MemoryPlan("all streamed", Place("blocks", True), Place("blocks", True), take_turns=True),
)
STAYING = tuple(plan for plan in PLANS if not plan.generator.offload and not plan.critic.offload)
"""Those that move no weights, for models that cannot be moved, or where there is nowhere else to go."""


@dataclass(frozen=True)
class Sizes:
    """What takes part in a step.

    Attributes:
        network, decoder: of the generator.
        critics: each call of a model that judges, on the same device; calls follow each other.
        lora: bytes of its parameters.
        passes: of the network without gradient before the one with it.
    """

    network: ModelSize
    decoder: ModelSize
    critics: Sequence[ModelSize]
    lora: int
    passes: int = 0


NOTHING = ModelSize(0, 0, 0, 0, 0, 0, 0, 0.0)


def sizes_of(
    generator: Any,
    critics: Mapping[str, Any],
    recipe: Recipe,
    generator_bits: str | None = None,
    critic_bits: str | None = None,
) -> Sizes:
    """What a step of the recipe takes.

    Args:
        generator: with `sizes`; its weights need not be loaded.
        critics: by name, each with `size`; what others take is not counted.
        generator_bits, critic_bits: what weights would be quantised to: None (as they are), "8bit" or "4bit".
    """
    samples = recipe.batch_size
    network, decoder, lora = generator.sizes(samples, recipe.rank, recipe.lora_targets, generator_bits)
    height, width = generator.pixels
    asked = [
        critics[name].size(height, width, _asked([recipe.questions[n] for n in members], recipe), samples, critic_bits)
        for name, _, members in group_questions(recipe.questions)
        if hasattr(critics[name], "size")
    ]
    steps = recipe.num_inference_steps or generator.num_inference_steps
    passes = steps if recipe.timesteps == "renoise" else (steps - 1) // 2  # of the roll-out, on average
    return Sizes(network, decoder, asked, lora, passes)


def _asked(questions: Sequence[Question], recipe: Recipe) -> list[Asked]:
    """What a step may ask at most: of sampled wordings the longest, of averaged ones all."""
    prompt = recipe.prompts[0] if recipe.prompts else ""
    return [
        Asked(text.replace(PROMPT, prompt), question.choices[0] if question.is_as_before else question.answer)
        for question in questions
        for text in ([max(question.texts, key=len)] if recipe.wordings == SAMPLED else question.texts)
    ]


@dataclass(frozen=True)
class Expectation:
    """Of one plan.

    Attributes:
        peak: bytes on the device at most, those of CUDA itself included.
        phase: when.
        moved: bytes that come to the device in a step.
        flops: of a step.
    """

    plan: MemoryPlan
    peak: int
    phase: str
    moved: int
    flops: float

    def describe(self, generator: str, critic: str, free: int) -> str:
        """One line for the user; the models by names that say how many bits they have."""
        places = f"{generator} {self.plan.generator.words}, {critic} {self.plan.critic.words}"
        return f"{places}: about {self.peak / GB:.1f} of {free / GB:.1f} GB free"

    def seconds(self, bandwidth: float = BANDWIDTH, speed: float = SPEED) -> float:
        """Of a step, where transfers do not hide behind arithmetic."""
        return self.moved / bandwidth + self.flops / speed


def expect(plan: MemoryPlan, sizes: Sizes) -> Expectation:
    """What a plan comes to: of each phase the weights that are there and all that has been kept by then."""
    network = _Part(sizes.network, plan.generator, plan.take_turns)
    whole = replace(plan.generator, offload=bool(plan.generator.offload))
    decoder = _Part(sizes.decoder, whole, plan.take_turns)
    critics = [_Part(critic, plan.critic, away=True) for critic in sizes.critics]
    waits = plan.generator.checkpointing or not plan.take_turns  # the graph of the picture, while critics judge
    idle = network.idle + decoder.idle + sum(critic.idle for critic in critics)
    held = {
        "network": network.at_work + network.kept + sizes.lora * (MOMENTS + GRADIENT),
        "decoder": decoder.at_work + decoder.kept + network.kept + sizes.lora * MOMENTS,
        "critic": max((critic.at_work + critic.kept for critic in critics), default=0)
        + (network.kept + decoder.kept if waits else 0)
        + sizes.lora * MOMENTS,
    }
    phase = max(held, key=lambda name: held[name])
    again = 0 if waits else 1
    return Expectation(
        plan,
        int((idle + held[phase]) * (1 + OVERHEAD)) + CONTEXT,
        phase,
        network.moved(sizes.passes + again + 2, 2) + decoder.moved(again + 2, 2) + sum(c.moved(2, 1) for c in critics),
        network.flops(sizes.passes + again) + decoder.flops(again) + sum(c.flops(0) for c in critics),
    )


class _Part:
    """One model in a plan.

    Attributes:
        idle: bytes of weights that are there also while others work.
        at_work: bytes that come to those while it works.
        kept: bytes of its graph while others work.
    """

    def __init__(self, size: ModelSize, place: Place, away: bool) -> None:
        self._size, self._place, self._visits = size, place, bool(place.offload) and away
        streamed = place.offload == "blocks"
        whole = size.weights + size.work + (size.block if place.checkpointing else 0)
        working = size.passing - size.inputs if streamed else whole  # `kept` is counted beside it
        self.idle = 0 if self._visits else size.ring if streamed else size.weights
        self.at_work = working - self.idle
        self.kept = size.inputs if place.checkpointing else size.kept

    def moved(self, passes: int, visits: int) -> int:
        """Bytes that come to the device, for so many passes in so many turns."""
        if self._place.offload == "blocks":
            return self._size.weights * passes
        return self._size.weights * visits if self._visits else 0

    def flops(self, passes: int) -> float:
        """Of so many passes without gradient, and of one with it, forward and backward."""
        return self._size.flops * (passes + 2 + self._place.checkpointing)


def fitting(sizes: Sizes, free: int, plans: Sequence[MemoryPlan] = PLANS) -> list[Expectation]:
    """The plans that fit so many free bytes, the fastest first."""
    found = [expect(plan, sizes) for plan in plans]
    return sorted((e for e in found if e.peak <= free), key=lambda e: e.seconds())


def choose(sizes: Sizes, free: int, plans: Sequence[MemoryPlan] = PLANS) -> Expectation:
    """The fastest plan that fits so many free bytes.

    Raises:
        TooSmall: none does; the message says what is missing, and what would help.
    """
    if found := fitting(sizes, free, plans):
        return found[0]
    least = min((expect(plan, sizes) for plan in plans), key=lambda e: e.peak)
    missing = least.peak - free
    raise TooSmall(
        f"Expected at least {least.peak / GB:.1f} GB of free memory on the device for the thriftiest plan "
        f"({least.plan.name}), got {free / GB:.1f} GB: {missing / GB:.1f} GB are missing. Train at a smaller "
        "picture size, close other programs, or load the models in 8 or 4 bits. To try all the same, choose a plan "
        "yourself."
    )


def thriftier(than: Expectation, sizes: Sizes, plans: Sequence[MemoryPlan] = PLANS) -> Expectation | None:
    """The fastest plan that needs at least a twentieth less; None if there is none."""
    less = int((than.peak - CONTEXT) * 0.95) + CONTEXT
    return next(iter(fitting(sizes, less, plans)), None)
