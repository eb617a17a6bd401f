"""How the MODEL and its critics share the device: the memory plan of Distill LoRA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management

from .training import AUTO, BOTH, TURNS, patchers

BLOCKS = "block by block"
PLANS = {TURNS: "turns", BLOCKS: "all streamed"}


@dataclass(frozen=True)
class Fit:
    """A plan, what it comes to, and the line that says so to the user."""

    expected: Any  # distillation.memory.Expectation
    sizes: Any
    line: str


def fit(generator: Any, critics: dict[str, Any], recipe: Any, wanted: str, checkpointing: bool) -> Fit:
    """The plan that the user wants, or with "auto" the fastest one that fits.

    Args:
        wanted: AUTO, BOTH, TURNS or BLOCKS.
        checkpointing: whether blocks may be computed again in the backward pass.

    Raises:
        TooSmall: with "auto", none fits.
    """
    from ..distillation.memory import choose, expect, sizes_of

    sizes = sizes_of(generator, critics, recipe)
    device, free = generator.model.load_device, free_memory(generator)
    possible = _possible(wanted, checkpointing, comfy.model_management.is_device_cpu(device))
    if not generator.can_offload:
        possible = [replace(plan, generator=replace(plan.generator, offload=False)) for plan in possible]
    if wanted == AUTO:
        expected = choose(sizes, free, possible)
    else:
        found = [expect(plan, sizes) for plan in possible]
        fits = [e for e in found if e.peak <= free]
        expected = min(fits, key=lambda e: e.seconds()) if fits else min(found, key=lambda e: e.peak)
    names = generator.info.name, ", ".join(critic.info.name for critic in critics.values())
    return Fit(expected, sizes, expected.describe(*names, free))


def _possible(wanted: str, checkpointing: bool, is_cpu: bool) -> list[Any]:
    from ..distillation.memory import PLANS as ALL
    from ..distillation.memory import STAYING, MemoryPlan, Place

    if wanted == BLOCKS:
        return [plan for plan in ALL if plan.name == PLANS[BLOCKS]]
    if wanted == TURNS:
        place = Place(True, checkpointing)
        return [MemoryPlan(PLANS[TURNS], place, place, take_turns=True)]
    plans = STAYING if wanted == BOTH or is_cpu else ALL
    staying = [plan for plan in plans if not plan.generator.checkpointing or plan.generator.offload]
    return list(plans) if checkpointing else staying


def free_memory(generator: Any) -> int:
    """Bytes of the device that ComfyUI can make free, by sending away what it has loaded."""
    device = generator.model.load_device
    loaded = sum(entry.model_loaded_memory() for entry in comfy.model_management.current_loaded_models)
    return int(comfy.model_management.get_free_memory(device) + loaded)


def arranging(generator: Any, critics: dict[str, Any], stack: ExitStack) -> Callable[[Any], None]:
    """What makes generator and critics lie by a plan, until `stack` is closed or another plan comes."""

    def arrange(plan: Any) -> None:
        stack.close()
        generator.arrange(plan.generator.offload, plan.generator.checkpointing)
        beside = [] if plan.critic.offload else patchers(critics)
        generator.loaded_with = None if plan.take_turns else beside
        for critic in critics.values():
            if hasattr(critic, "arranged"):
                stack.enter_context(critic.arranged(plan.critic.offload, plan.critic.checkpointing))

    return arrange
