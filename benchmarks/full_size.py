"""What a training step needs at full size: peak memory and arithmetic by part, without a GPU and without weights.

    python benchmarks/full_size.py                        # the steps that have a bar: about ten minutes
    python benchmarks/full_size.py --generator z-image --critic qwen3-vl-4b --size 1024 --plan "turns, checkpointed"
    python benchmarks/full_size.py --all --keep benchmarks/full_size.json

The engine's own step runs on real configurations with fake tensors (see ledger.py): one sampler step, batch 1, a LoRA
of rank 16 with its moments. Not counted: the context of the device (about 0.5 GiB), workspaces, fragmentation.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from full_size_models import CRITICS, GENERATORS
from full_size_plans import BARS, MORE, PLANS, Row
from full_size_step import measure
from rich.console import Console
from rich.progress import track

GeneratorName = Enum("GeneratorName", {name: name for name in GENERATORS})
CriticName = Enum("CriticName", {name: name for name in CRITICS})
PlanName = Enum("PlanName", {name: name for name in PLANS})
KEY = ("generator", "critic", "size", "questions", "plan")  # of a row


def main(
    generator: Annotated[GeneratorName | None, typer.Option(help="What is trained.")] = None,
    critic: Annotated[CriticName | None, typer.Option(help="What judges.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width in pixels.")] = None,
    questions: Annotated[list[int] | None, typer.Option(help="How many are asked; may be repeated.")] = None,
    plan: Annotated[list[PlanName] | None, typer.Option(help="May be repeated.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The whole table of the README: hours.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="A JSON file that keeps the rows; those in it already are not measured again.")
    ] = None,
) -> None:
    """Without options the rows that have a bar; else one for each plan and number of questions."""
    if everything:
        wanted = [*BARS, *(row for row in MORE if key(row) not in map(key, BARS))]
    elif any(option is not None for option in (generator, critic, size, questions, plan)):
        named = {"generator": generator and generator.value, "critic": critic and critic.value, "size": size}
        given = {name: value for name, value in named.items() if value is not None}
        wanted = [Row(one.value, count, **given) for one in plan or PlanName for count in questions or [1]]
    else:
        wanted = [*BARS]
    rows = []
    for row in track(wanted, console=Console(stderr=True)):
        asked = key(row)
        found = read(keep).get(asked)
        if found is None:
            found = dict(zip(KEY, asked, strict=True)) | {"parts": asdict(PLANS[row.plan])} | measured(row)
            if keep:
                keep.write_text(json.dumps([*(read(keep) | {asked: found}).values()], indent=1) + "\n")
        rows.append(found | judged(row, found))
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def read(file: Path | None) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows that it keeps, by what was measured."""
    rows = json.loads(file.read_text()) if file and file.exists() else []
    return {tuple(row[name] for name in KEY): row for row in rows}


def key(row: Row) -> tuple[Any, ...]:
    return tuple(asdict(row)[name] for name in KEY)


def measured(row: Row) -> dict[str, Any]:
    models = GENERATORS[row.generator], CRITICS[row.critic]
    return measure(*models, row.size, row.questions, PLANS[row.plan], torch.bfloat16)


def judged(row: Row, found: dict[str, Any]) -> dict[str, Any]:
    """The row's bar, and whether it holds."""
    bars = {"peak_gib": row.gib, "tflop": row.tflop}
    set_ = {name: most for name, most in bars.items() if most is not None}
    holds = all(found[name] <= most for name, most in set_.items()) if set_ else None
    return {"card": row.card, "bar": set_, "holds": holds}


def markdown(rows: list[dict[str, Any]]) -> str:
    titles = "generator | critic | size | plan | questions | peak GiB | in | TFLOP | GiB moved | card | bar | holds"
    lines = [f"| {titles} |", "|---" * 12 + "|"]
    for row in rows:
        names = " | ".join(str(row[key]) for key in ("generator", "critic", "size", "plan", "questions"))
        peak = " + ".join(f"{gib:.1f}" for gib in row["peak_gib_by_card"])
        bar = ", ".join(f"≤ {most:g} {'GiB' if name == 'peak_gib' else 'TFLOP'}" for name, most in row["bar"].items())
        holds = {True: "yes", False: "NO", None: ""}[row["holds"]]
        figures = f"{peak} | {row['peak_phase']} | {row['tflop']:.1f} | {row['moved_gib']:.1f}"
        lines.append(f"| {names} | {figures} | {row['card']} | {bar} | {holds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
