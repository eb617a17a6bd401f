"""Which memory plan fits a card: the command `dual-process plan`, and the plan of a training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .shared import clear_errors

if TYPE_CHECKING:
    from ..distillation import Recipe
    from ..distillation.memory import Expectation, MemoryPlan, Sizes

BITS = (None, "8bit", "4bit")


def plan(
    generator: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline; its weights are not read.")],
    critic: Annotated[Path, typer.Option(help="Folder of a vision-language model; its weights are not read.")],
    memory: Annotated[float, typer.Option(min=0, help="Free memory of the device in GB.")],
    recipe: Annotated[Path | None, typer.Option(help="For its questions, batch and picture size.")] = None,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels, where no recipe says.")] = 512,
    two_cards: Annotated[
        bool, typer.Option("--two-cards", help="The critic has a second card of the same size to itself.")
    ] = False,
    bandwidth: Annotated[float, typer.Option(min=0.1, help="Of the way to the device, in GB/s.")] = 25.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON.")] = False,
) -> None:
    """Says how a training would fit a device, and what it would take, without loading any weights."""
    with clear_errors():
        import torch

        from ..core.errors import DualProcessError
        from ..critics.transformers_critic import without_weights as empty_critic
        from ..generators.loading import without_weights as empty_generator

        asked = _recipe(recipe, size)
        maker = empty_generator(generator, torch.bfloat16, height=asked.height or size, width=asked.width or size)
        judge = empty_critic(critic)
        rows = list(_rows(maker, judge, asked, int(memory * 1e9), bandwidth * 1e9, two_cards))
        if as_json:
            print(json.dumps(rows, indent=2))
        else:
            Console().print(_table(rows, memory))
        if not any(row["fits"] for row in rows):
            least = min(row["peak_gb"] for row in rows)
            raise DualProcessError(
                f"No plan fits {memory:g} GB: the thriftiest takes {least:.1f} GB. Train at a smaller picture size."
            )


@dataclass(frozen=True)
class Fit:
    """How a training fits its device."""

    expected: Expectation
    sizes: Sizes
    plans: Sequence[MemoryPlan]  # among which it is, or a thriftier one is looked for
    line: str  # for the user


def fit(
    recipe: Recipe,
    folders: tuple[Path, Path],
    device: str | None,
    bits: tuple[str | None, str | None],
    wanted: MemoryPlan | None,
    critic_elsewhere: bool = False,
    compiled: bool = False,
) -> Fit:
    """The plan that was asked for, or the fastest one that fits the free memory.

    Args:
        folders, bits: of the generator and of the critic.
        critic_elsewhere: whether the critic has a device of its own.
        compiled: whether the generator's blocks are compiled.

    Raises:
        TooSmall: none was asked for, and none fits.
    """
    import torch

    from ..core.devices import choose_device, free_memory
    from ..core.errors import GeneratorError
    from ..critics.transformers_critic import without_weights as empty_critic
    from ..distillation.memory import PLANS, STAYING, choose, expect, sizes_of
    from ..generators.loading import without_weights as empty_generator

    place = choose_device(device, GeneratorError)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    generator = empty_generator(folders[0], dtype, height=recipe.height, width=recipe.width)
    sizes = sizes_of(generator, {"default": empty_critic(folders[1], dtype)}, recipe, *bits)
    sizes = replace(sizes, critics=()) if critic_elsewhere else sizes
    free = free_memory(place)
    plans = STAYING if place.type == "cpu" or compiled else PLANS  # compiled blocks cannot stream
    expected = expect(wanted, sizes) if wanted else choose(sizes, free, plans)
    names = [f"{f.name} {b or str(dtype).removeprefix('torch.')}" for f, b in zip(folders, bits, strict=True)]
    return Fit(expected, sizes, plans, expected.describe(*names, free))


def _recipe(path: Path | None, size: int) -> Recipe:
    from .. import overlays
    from ..distillation import Question, Recipe

    if path is not None:
        return Recipe.load(path, build_overlay=overlays.build)
    question = Question("Is the horizon in the picture at the red line?", overlay=overlays.horizon(0.3))
    return Recipe(questions=(question,), num_inference_steps=1, height=size, width=size)


def _rows(
    generator: Any, critic: Any, recipe: Recipe, free: int, bandwidth: float, two_cards: bool
) -> Iterator[dict[str, Any]]:
    """For weights of each number of bits the fastest plan that fits, or else the thriftiest."""
    from ..distillation.memory import PLANS, expect, fitting, sizes_of

    for ours, theirs in product(BITS, BITS):
        sizes = sizes_of(generator, {"default": critic}, recipe, ours, theirs)
        found = fitting(sizes, free) or [min((expect(p, sizes) for p in PLANS), key=lambda e: e.peak)]
        best = _on_two_cards(sizes, free) if two_cards else found[0]
        yield {
            "generator": ours or "16bit",
            "critic": theirs or "16bit",
            "plan": best.plan.name,
            "fits": best.peak <= free,
            "peak_gb": best.peak / 1e9,  # of the fuller card
            "moved_gb": best.moved / 1e9,
            "tflop": best.flops / 1e12,
            "seconds": best.seconds(bandwidth),
        }


def _on_two_cards(sizes: Sizes, free: int) -> Expectation:
    """The fastest plan of the generator alone beside the fastest of the critic alone, as one."""
    from ..distillation.memory import NOTHING, PLANS, Expectation, MemoryPlan, Sizes, expect, fitting

    alone = replace(sizes, critics=()), Sizes(NOTHING, NOTHING, sizes.critics, 0)
    teacher, judge = (
        next(iter(fitting(part, free)), min((expect(p, part) for p in PLANS), key=lambda e: e.peak)) for part in alone
    )
    plan = MemoryPlan(
        f"{teacher.plan.generator.words} | {judge.plan.critic.words}", teacher.plan.generator, judge.plan.critic
    )
    return Expectation(
        plan,
        max(teacher.peak, judge.peak),
        teacher.phase if teacher.peak > judge.peak else judge.phase,
        teacher.moved + judge.moved,
        teacher.flops + judge.flops,
    )


def _table(rows: list[dict[str, Any]], memory: float) -> Table:
    table = Table("generator", "critic", "plan", "peak", "moved a step", "seconds a step", title=f"{memory:g} GB")
    for row in rows:
        peak = f"{row['peak_gb']:.1f} GB" if row["fits"] else f"{row['peak_gb']:.1f} GB: too much"
        figures = f"{row['moved_gb']:.1f} GB", f"{row['seconds']:.1f}"
        table.add_row(row["generator"], row["critic"], row["plan"], peak, *figures)
    return table
