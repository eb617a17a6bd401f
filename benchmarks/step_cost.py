"""What anchors and keep questions add to a training step of the demo's horizon control.

    python benchmarks/step_cost.py

Each setting makes a few steps in turn, several rounds, in one process; the CPU time of a step is given as a ratio to
that of the plain control (one question, no penalty), the median over the rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from typing import Annotated

import torch
import typer

from dual_process import demo
from dual_process.demo.controls import horizon_control
from dual_process.distillation import Recipe
from dual_process.distillation.run import Run


def settings() -> dict[str, Recipe]:
    """The recipes that are compared, the first of them the measure of the others."""
    control = horizon_control()
    whole, asked = control.recipe, control.asked
    plain = replace(whole, questions=asked, penalties={})
    return {
        "one question": plain,
        "and velocity and range, as in version 0.1": replace(plain, penalties={"velocity": 0.5, "range": 1.0}),
        "and keep questions": replace(whole, penalties={}),
        "and anchors": replace(plain, penalties={"anchors": 1.0}),
        "and all of the demo's defaults": whole,
    }


def main(
    steps: Annotated[int, typer.Option(help="Steps of a round, after one to warm up.")] = 5,
    rounds: Annotated[int, typer.Option(help="Rounds; each takes every setting once.")] = 3,
) -> None:
    """Prints the ratios as JSON."""
    torch.set_num_threads(1)
    recipes = settings()
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(rounds):
        for name, recipe in recipes.items():
            seconds[name].append(_step_seconds(recipe, steps))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    print(json.dumps({name: round(value / first, 2) for name, value in medians.items()}, indent=2))


def _step_seconds(recipe: Recipe, steps: int) -> float:
    """Median CPU time of a step; the pool of anchors is small and is not counted."""
    recipe = replace(recipe, anchors=replace(recipe.anchors, pool=16))
    generator, critic = demo.load(recipe.prompts)
    with Run(generator, critic, recipe) as run:
        run.prepare()
        run.step()
        taken = []
        for _ in range(steps):
            start = time.process_time()
            run.step()
            taken.append(time.process_time() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    typer.run(main)
