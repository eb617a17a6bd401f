"""Whether the ledger is right: a step of small models for real, by the memory of the process, and in the ledger.

    python benchmarks/full_size_check.py

float32 on the CPU, two minutes. Each real step runs in a process of its own, where freed memory goes back to the
system. A step of tiny models comes before, so that libraries and their caches count on neither side.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from typing import Annotated, Any

import torch
import typer
from full_size_models import SMALL_CRITIC, SMALL_GENERATOR, TINY_CRITIC, TINY_GENERATOR
from full_size_plans import PLANS
from full_size_step import build_critic, build_generator, measure, recipe
from ledger import GiB
from peak_memory import Peak, resident

from dual_process.distillation.run import Run

SIZE = 256
CHECKED = ("resident", "checkpointed")
MOST = 0.1  # that the two may differ by


def main(
    real: Annotated[str, typer.Option(help="Only make this plan's step for real, and print its GiB.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """A row for each plan; fails where they differ by more than 10 %."""
    if real:
        made(TINY_GENERATOR, TINY_CRITIC, 64, real)
        gc.collect()
        before = resident()
        with Peak() as peak:
            made(SMALL_GENERATOR, SMALL_CRITIC, SIZE, real)
        print(json.dumps((peak.bytes - before) / GiB))
        return
    rows = [row(name) for name in CHECKED]
    print(json.dumps(rows, indent=2) if as_json else "\n".join(map(str, rows)))
    raise typer.Exit(int(any(abs(row["ratio"] - 1) > MOST for row in rows)))


def made(generator: Any, critic: Any, size: int, plan: str) -> None:
    """Two steps: the second has the optimiser's moments."""
    part = PLANS[plan]
    teacher = build_generator(generator, size, part.generator, torch.float32)
    judge = build_critic(critic, part.critic, torch.float32, critic.parts())
    with Run(teacher, judge, recipe(1), take_turns=part.turns) as run:
        run.step()
        run.step()


def row(plan: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--real", plan]
    # Else glibc keeps what is freed for itself.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    real = float(out.strip().splitlines()[-1])
    ledger = measure(SMALL_GENERATOR, SMALL_CRITIC, SIZE, 1, PLANS[plan], torch.float32)["peak_gib"]
    return {"plan": plan, "process_gib": round(real, 3), "ledger_gib": round(ledger, 3), "ratio": ledger / real}


if __name__ == "__main__":
    typer.run(main)
