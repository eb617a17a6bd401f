"""How well a slider follows its values: one training for a range, measured at nine values and beyond the ends.

    python benchmarks/slider.py --control horizon --json

Beside it, `--apart` trains a LoRA for each of a few values alone, as the paper does.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from dual_process.core.protocols import slider_values
from dual_process.demo.catalogue import CATALOGUE
from dual_process.demo.runner import run_control
from dual_process.demo.sliders import SLIDERS, SliderControl
from dual_process.distillation import distill
from dual_process.evaluation.control import evaluate, make_pairs, sample_pairs
from dual_process.generators.noise import draw_noise

BEYOND = (-1.5, 1.5)
APART = (-1.0, 0.0, 1.0)


def main(
    control: Annotated[str, typer.Option(help=f"What to teach: {', '.join(SLIDERS)}.")] = "horizon",
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs at each value.")] = 32,
    apart: Annotated[bool, typer.Option(help="Train single LoRAs for three of the values, too.")] = False,
    lora_targets: Annotated[str | None, typer.Option(help="As in a recipe; the preset's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep each slider's two files here.")] = None,
) -> None:
    """Trains the slider with every seed and prints a row for each value."""
    if control not in SLIDERS:
        raise typer.BadParameter(f"expected one of {', '.join(SLIDERS)}, got {control}")
    changes = {} if lora_targets is None else {"lora_targets": lora_targets}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in track(range(first_seed, first_seed + seeds), console=Console(stderr=True)):
            slider = SLIDERS[control](seed=seed, **changes)
            rows += measured(control, slider, pairs, (output or Path(scratch)) / f"{control}_{seed}.safetensors")
            if apart:
                rows += alone(control, slider, pairs, Path(scratch))
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def measured(name: str, slider: SliderControl, count: int, path: Path) -> list[dict[str, Any]]:
    """Rows of a slider at nine values, and at two beyond its ends, whose truth is that of the ends."""
    first = slider.at(-1.0)
    generator, critic = CATALOGUE[name].load(first.prompts)
    result = distill(generator, critic, slider.recipe)
    result.save(path)
    pairs = make_pairs(first, count, lambda seeds: draw_noise(seeds, *first.noise_shape))
    base = sample_pairs(generator, pairs, lora_scale=0.0)
    rows = []
    for value in (BEYOND[0], *slider_values(9), BEYOND[1]):
        images = sample_pairs(generator, pairs, lora_scale=1.0, slider=value)
        control = slider.at(value)
        found = evaluate(control, critic, images, base, pairs, trained=True)
        rows.append({"control": name, "seed": slider.seed, "how": "slider", "value": value, **found})
    return rows


def alone(name: str, slider: SliderControl, count: int, folder: Path) -> list[dict[str, Any]]:
    """Rows of LoRAs for one value each, with the control's own settings."""
    rows = []
    for value in APART:
        control = slider.alone(value)
        generator, critic = CATALOGUE[name].load(control.prompts)
        run = run_control(control, generator, critic, folder / f"{name}_{value}", count)
        rows.append({"control": name, "seed": slider.seed, "how": "alone", "value": value, **run.report["after"]})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line a row, with the measures that are numbers or means."""
    names = [name for name in rows[0] if name not in ("control", "seed", "how", "value")]
    lines = ["| seed | how | value | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = [row[n]["mean"] if isinstance(row[n], dict) else row[n] for n in names]
        shown = " | ".join(f"{cell:.3g}" for cell in cells)
        lines.append(f"| {row['seed']} | {row['how']} | {row['value']:g} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
