"""Remakes the models of a demo world: `python -m dual_process.demo.train --work DIR --world strokes`.

The VAE comes first; then the generator and the critic train side by side, one core each; last the landscapes' critic
learns to compare two pictures, and the second world's learns from what the process paints. Every stage logs, draws
pictures, and goes on from its checkpoint when it is started again.
"""

from __future__ import annotations

import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import WEIGHTS, strokes
from .strokes.training import critic as strokes_critic
from .strokes.training import generator as strokes_generator
from .strokes.training import vae as strokes_vae
from .strokes.training.process import train_process
from .training import critic, generator, vae
from .training.common import Run
from .training.comparing import train_comparing
from .training.export import export, export_adapter


class World(str, Enum):
    """Whose models are made."""

    landscapes = "landscapes"
    strokes = "strokes"


class Stage(str, Enum):
    """Which part of the remake to run."""

    all = "all"
    vae = "vae"
    generator = "generator"
    critic = "critic"
    export = "export"
    comparing = "comparing"
    process = "process"


# How each world's VAE, generator and critic are trained, and where its weights belong.
STAGES = {
    World.landscapes: (vae.train_vae, generator.train_generator, critic.train_critic, WEIGHTS),
    World.strokes: (
        strokes_vae.train_vae,
        strokes_generator.train_generator,
        strokes_critic.train_critic,
        strokes.WEIGHTS,
    ),
}


def main(
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and pictures.")],
    world: Annotated[World, typer.Option(help="Whose models to make.")] = World.landscapes,
    stage: Annotated[Stage, typer.Option(help="One stage, or all of them in order.")] = Stage.all,
    output: Annotated[Path | None, typer.Option(help="Folder of pipeline/ and critic/; the world's own.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    effort: Annotated[float, typer.Option(help="Scales every number of steps; 0.01 is a quick rehearsal.")] = 1.0,
) -> None:
    """Trains a demo world's VAE, generator and critic from scratch and exports them."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = Run(work, seed, effort)
    train_vae, train_generator, train_critic, weights = STAGES[world]
    if stage == Stage.all:
        _run_all(["--work", str(work), "--world", world.value, "--seed", str(seed), "--effort", str(effort)], output)
        return
    made = train_vae(run)
    if stage == Stage.generator:
        train_generator(run, made)
    elif stage == Stage.critic:
        train_critic(run, made)
    elif stage == Stage.export:
        export(output or weights, made, train_generator(run, made), train_critic(run, made))
    elif stage == Stage.comparing and world == World.landscapes:
        folder = output or weights
        export_adapter(folder / "comparing", train_comparing(run, folder / "critic", made))
    elif stage == Stage.process and world == World.strokes:
        folder = output or weights
        export_adapter(folder / "process", train_process(run, folder, made))


def _run_all(options: list[str], output: Path | None) -> None:
    if output is not None:
        options += ["--output", str(output)]

    def start(stage: Stage) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "dual_process.demo.train", "--stage", stage.value, *options])

    for side_by_side in (
        [Stage.vae],
        [Stage.generator, Stage.critic],
        [Stage.export],
        [Stage.comparing],
        [Stage.process],
    ):
        processes = [start(stage) for stage in side_by_side]
        if any([p.wait() for p in processes]):
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
