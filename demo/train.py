"""Remakes the demo models: `python -m dual_process.demo.train --work DIR`.

The VAE comes first; then the generator and the critic train side by side, one core each. Every stage logs, draws
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

from . import WEIGHTS
from .training.common import Run
from .training.critic import train_critic
from .training.export import export
from .training.generator import train_generator
from .training.vae import train_vae


class Stage(str, Enum):
    """Which part of the remake to run."""

    all = "all"
    vae = "vae"
    generator = "generator"
    critic = "critic"
    export = "export"


def main(
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, logs and pictures.")],
    stage: Annotated[Stage, typer.Option(help="One stage, or all of them in order.")] = Stage.all,
    output: Annotated[Path, typer.Option(help="Where pipeline/ and critic/ are written.")] = WEIGHTS,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    effort: Annotated[float, typer.Option(help="Scales every number of steps; 0.01 is a quick rehearsal.")] = 1.0,
) -> None:
    """Trains the demo VAE, generator and critic from scratch and exports them."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = Run(work, seed, effort)
    if stage == Stage.all:
        _run_all(work, output, seed, effort)
        return
    vae = train_vae(run)
    if stage in (Stage.generator, Stage.export):
        generator = train_generator(run, vae)
    if stage in (Stage.critic, Stage.export):
        critic = train_critic(run, vae)
    if stage == Stage.export:
        export(output, vae, generator, critic)  # type: ignore[possibly-undefined]


def _run_all(work: Path, output: Path, seed: int, effort: float) -> None:
    def start(stage: Stage) -> subprocess.Popen[bytes]:
        arguments = ["--work", str(work), "--output", str(output), "--seed", str(seed), "--effort", str(effort)]
        return subprocess.Popen([sys.executable, "-m", "dual_process.demo.train", "--stage", stage.value, *arguments])

    for side_by_side in ([Stage.vae], [Stage.generator, Stage.critic], [Stage.export]):
        processes = [start(stage) for stage in side_by_side]
        if any([p.wait() for p in processes]):
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
