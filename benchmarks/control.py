"""How well, and how reliably, the demo world learns a control: several targets and seeds on held-out pairs.

    python benchmarks/control.py --control horizon --json

A row is the `report.json` of one run. Its time is one machine's; compare times within one run only.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from dual_process.demo.catalogue import CATALOGUE
from dual_process.demo.runner import run_control
from dual_process.demo.strokes.controls import CONTROLS as SECOND_WORLD

LINES = (0.25, 0.45, 0.7)
PALETTES = (
    ("#6a4a82", "#e89a5c", "#7a5068", "#4a3250"),
    ("#f2c14e", "#e8d9b0", "#5b8e7d", "#2b4a5a"),
    ("#2f3e75", "#7c8fd0", "#3d6b4f", "#1f3328"),
)

PLACES = (
    ((16.0, 0.15), (112.0, 0.85)),
    ((16.0, 0.9), (112.0, 0.1)),
    ((16.0, 0.5), (112.0, 0.5)),
)

# The settings that each control is tried with.
TARGETS: dict[str, list[dict[str, Any]]] = {
    "horizon": [{"line": line} for line in LINES],
    "palette": [{"colors": colors} for colors in PALETTES],
    "night": [{}],
    "line_weight": [{"thickness": thickness} for thickness in (1.0, 2.5, 4.0)],
    "depth": [{"nearer": nearer} for nearer in ("left", "right")],
    "composition": [{"places": places} for places in PLACES],
}


def main(
    control: Annotated[str, typer.Option(help=f"What to teach: {', '.join(TARGETS)}, or all.")] = "horizon",
    seeds: Annotated[int, typer.Option(help="Training seeds for each target.")] = 3,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as a Markdown table.")] = False,
    line: Annotated[float | None, typer.Option(help="Only this height of the horizon, fraction from the top.")] = None,
    lora_targets: Annotated[str | None, typer.Option(help="As in a recipe; the preset's by default.")] = None,
    critic_size: Annotated[
        int | None, typer.Option(help="The critic sees pictures of this many pixels squared.")
    ] = None,
    paraphrases: Annotated[bool, typer.Option(help="Ask all wordings (second world).")] = True,
    guards: Annotated[bool, typer.Option(help="Ask whether the instruction was painted (second world).")] = True,
    output: Annotated[Path | None, typer.Option(help="Keep each run's pictures and report here.")] = None,
) -> None:
    """Runs every target with every seed and prints one row each."""
    if control not in (*TARGETS, "all"):
        raise typer.BadParameter(f"expected one of {', '.join(TARGETS)}, or all, got {control}")
    names = list(TARGETS) if control == "all" else [control]
    runs = [
        (name, target, seed)
        for name in names
        for target in (TARGETS[name] if line is None else [{"line": line}])
        for seed in range(seeds)
    ]
    changes: dict[str, Any] = {} if lora_targets is None else {"lora_targets": lora_targets}
    changes |= {name: False for name, asked in (("paraphrases", paraphrases), ("guards", guards)) if not asked}
    if not (paraphrases and guards) and not set(names) <= set(SECOND_WORLD):
        raise typer.BadParameter(f"expected --control {' or '.join(SECOND_WORLD)} with this choice, got {control}")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, target, seed) in enumerate(track(runs, console=Console(stderr=True))):
            entry = CATALOGUE[name]
            chosen = entry.make(seed=seed, **target, **changes)
            generator, critic = entry.load(chosen.prompts, critic_size=critic_size)
            run = run_control(chosen, generator, critic, (output or Path(scratch)) / f"{number:02}", pairs)
            rows.append({"target": target, **run.report})
    by_name = [[row for row in rows if row["control"] == name] for name in names]
    print(json.dumps(rows, indent=2) if as_json else "\n\n".join(map(markdown, by_name)))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of before → after, one line a row."""
    measures = _flatten(rows[0]["after"])
    lines = [
        "| target | seed | " + " | ".join(measures) + " | outcome |",
        "|---|---|" + "---|" * (len(measures) + 1),
    ]
    for row in rows:
        before, after = _flatten(row["before"]), _flatten(row["after"])
        cells = [f"{before[m]:.3g} → {after[m]:.3g}" for m in measures]
        target = ", ".join(str(v) for v in row["target"].values()) or "–"
        lines.append(f"| {target} | {row['seed']} | " + " | ".join(cells) + f" | {row['outcome']} |")
    return "\n".join(lines)


def _flatten(measures: dict[str, Any]) -> dict[str, float]:
    flat = {}
    for name, value in measures.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


if __name__ == "__main__":
    typer.run(main)
