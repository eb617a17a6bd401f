"""Whether the demo's verdicts are right: settings of the horizon control whose outcome is known, several seeds each.

    python benchmarks/verdicts.py --seeds 3

Thresholds were set on seeds 0 to 2 and line 0.3; `--first-seed 3 --line 0.55` shows runs that they have not seen.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from dual_process import demo
from dual_process.demo.controls import horizon_control
from dual_process.demo.runner import run_control
from dual_process.evaluation.control import Control


@dataclass(frozen=True)
class Setting:
    """Changes to the control's recipe, and what has to come of them."""

    name: str
    outcome: str
    changes: dict[str, Any] = field(default_factory=dict)
    loses: str | None = None  # what the verdict must name as lost

    def control(self, line: float, seed: int) -> Control:
        changes = dict(self.changes)
        if not changes.pop("keep", True):
            changes["questions"] = horizon_control(line).asked
        return horizon_control(line, seed, **changes)


# What the demo does by itself is the first; each of the others writes down all that makes it differ.
PLAIN = {"adam_beta2": 0.999, "keep": False}
SETTINGS = (
    Setting("default", "learned"),
    Setting("as in version 0.1", "damaged", {**PLAIN, "penalties": {"velocity": 0.5, "range": 1.0}}, "objects"),
    Setting("high rate, no penalties", "hacked", {**PLAIN, "learning_rate": 1e-3, "penalties": {}}),
    Setting("hardly any rate", "not learned", {"learning_rate": 1e-7}),
)
FIGURES = (
    "p_answer",
    "horizon_error_px.mean",
    "psnr_counterfactual",
    "object_presence",
    "sky_color_error",
    "ground_color_error",
    "sharpness",
    "diversity",
    "palette_accuracy",
)


def main(
    seeds: Annotated[int, typer.Option(help="Training seeds for each setting.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    line: Annotated[float, typer.Option(help="Height of the horizon line, fraction from the top.")] = 0.3,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep each run's pictures and report here.")] = None,
) -> None:
    """Runs every setting with every seed; fails unless every verdict is right."""
    runs = [(setting, first_seed + i) for setting in SETTINGS for i in range(seeds)]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (setting, seed) in enumerate(track(runs, console=Console(stderr=True))):
            control = setting.control(line, seed)
            generator, critic = demo.load(control.prompts)
            run = run_control(control, generator, critic, (output or Path(scratch)) / f"{number:02}", pairs)
            rows.append(row(setting, run.report))
    right = sum(r["right"] for r in rows)
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))
    Console(stderr=True).print(f"{right} of {len(rows)} verdicts are right")
    raise typer.Exit(0 if right == len(rows) else 1)


def row(setting: Setting, report: dict[str, Any]) -> dict[str, Any]:
    """A run's report, with what was expected of it."""
    named = setting.loses is None or setting.loses in report["lost"]
    right = report["outcome"] == setting.outcome and named
    return {"setting": setting.name, "expected": setting.outcome, "right": right, **report}


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of the measures after training, one line a run."""
    lines = [
        f"| setting | seed | {' | '.join(FIGURES)} | outcome | lost | right |",
        "|---" * (len(FIGURES) + 5) + "|",
    ]
    for run in rows:
        cells = [f"{figure(run['after'], name):.3g}" for name in FIGURES]
        lost = ", ".join(run["lost"]) or "–"
        right = "yes" if run["right"] else f"no: {run['expected']}"
        lines.append(
            f"| {run['setting']} | {run['seed']} | {' | '.join(cells)} | {run['outcome']} | {lost} | {right} |"
        )
    return "\n".join(lines)


def figure(measures: dict[str, Any], path: str) -> float:
    """A measure by its dotted path; NaN where so few pairs cannot tell it."""
    value: Any = measures
    for key in path.split("."):
        value = value.get(key, float("nan"))
    return value


if __name__ == "__main__":
    typer.run(main)
