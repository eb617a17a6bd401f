"""What a picture beside the judged one teaches, and how well the demo's critic compares two pictures.

    python benchmarks/references.py --json

A LoRA is trained as in the template "style by reference", so that pictures look like the base model's one of a sunset;
the palette distance is to that picture's own dominant colours. The critic grades drawn pairs whose likeness is known,
after its lesson in comparing and without it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dual_process import demo
from dual_process.core.picture import Picture
from dual_process.demo.comparing import load_comparing_critic
from dual_process.demo.controls import PALETTE_PENALTIES, horizon_shift_px, palette_control
from dual_process.demo.questions import STYLE
from dual_process.demo.runner import run_control
from dual_process.demo.training.comparing import likeness, related, style_logit
from dual_process.demo.world import random_scenes, render
from dual_process.distillation import PRESETS, Question
from dual_process.distillation.favourites import LIKENESS
from dual_process.evaluation.control import Control, Pairs, read
from dual_process.evaluation.measures import dominant_colors, palette_error

REFERENCE, REFERENCE_SEED = "a sunset sky over the sea", 0
MEASURES = (
    *("p_answer", "palette_error_ciede2000.mean", "horizon_shift_px.median", "object_presence", "unevenness"),
    "sharpness",
)


def main(
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs.")] = 36,
    drawn: Annotated[int, typer.Option(help="Drawn pairs that the critic compares.")] = 48,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as Markdown tables.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep each run's pictures and report here.")] = None,
) -> None:
    """Measures the critic, trains with every seed, and prints a row each."""
    rows: dict[str, list[dict[str, Any]]] = {"critic": [], "style": []}
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("references", total=2 + seeds)
        for trained in (True, False):
            torch.manual_seed(0)  # of what the lesson has not taught
            rows["critic"].append({"lesson": trained, **compared(load_comparing_critic(trained=trained), drawn)})
            progress.advance(task)
        for seed in range(seeds):
            control = style_control(seed)
            generator, _ = demo.load(control.prompts)
            folder = (output or Path(scratch)) / str(seed)
            rows["style"].append(run_control(control, generator, load_comparing_critic(), folder, pairs).report)
            progress.advance(task)
    print(json.dumps(rows, indent=2) if as_json else f"{critic_table(rows['critic'])}\n\n{style_table(rows['style'])}")


def compared(critic: Any, count: int) -> dict[str, float]:
    """Mean errors of the expected grade, 0 to 1, and of P(same style), and their correlations with the truth."""
    random = torch.Generator().manual_seed(5)
    judged = random_scenes(count, random)
    shown = related(judged, random)
    grades = _p(critic, render(judged), render(shown), LIKENESS.text, LIKENESS.grades)
    grade = (grades / grades.sum(dim=1, keepdim=True)) @ torch.linspace(0, 1, grades.shape[1])
    alike = likeness(judged, shown)
    style = _p(critic, render(judged), render(shown), STYLE[0], ("Yes",))[:, 0]
    same = style_logit(judged, shown).sigmoid()
    return {
        "grade_error": float((grade - alike).abs().mean()),
        "grade_correlation": float(torch.corrcoef(torch.stack([grade, alike]))[0, 1]),
        "style_error": float((style - same).abs().mean()),
        "style_correlation": float(torch.corrcoef(torch.stack([style, same]))[0, 1]),
    }


def _p(critic: Any, judged: Tensor, shown: Tensor, text: str, answers: tuple[str, ...]) -> Tensor:
    """P of each answer about each picture beside its reference, [B, answers]."""
    rows = []
    for picture, reference in zip(judged, shown, strict=True):
        beside = (Picture.from_tensor(reference),)
        rows.append(critic.log_likelihood(picture[None], [Question(text, a, references=beside) for a in answers])[0])
    return torch.stack(rows).exp()


def style_control(seed: int) -> Control:
    """Pictures come to look like a reference: the palette's control, but for what is asked and what it is held to."""
    preset = PRESETS["demo"].recipe
    penalties = {**preset["penalties"], **PALETTE_PENALTIES}
    control = palette_control(seed=seed, penalties=penalties, adam_beta2=preset["adam_beta2"])  # as in the template
    generator, _ = demo.load(control.prompts)
    reference = generator.sample([control.prompts.index(REFERENCE)], [REFERENCE_SEED], lora_scale=0.0)[0]
    question = Question(STYLE[0], references=(Picture.from_tensor(reference),))
    _, *kept = control.recipe.questions
    swatches, _ = dominant_colors(reference)

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        distance = palette_error(images, torch.from_numpy(swatches))
        return {
            "palette_error_ciede2000": {"mean": float(distance.mean()), "median": float(distance.median())},
            "horizon_shift_px": horizon_shift_px(images, base),
        }

    recipe = replace(control.recipe, questions=(question, *kept))
    return replace(control, name="style", recipe=recipe, asked=(question,), measure=measure)


def critic_table(rows: list[dict[str, Any]]) -> str:
    """A line a critic."""
    names = [name for name in rows[0] if name != "lesson"]
    lines = ["| critic | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        said = "after its lesson" if row["lesson"] else "without it"
        lines.append(f"| {said} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |")
    return "\n".join(lines)


def style_table(rows: list[dict[str, Any]]) -> str:
    """A line a seed, before → after."""
    lines = ["| seed | " + " | ".join(MEASURES) + " | outcome | lost |", "|---|" + "---|" * (len(MEASURES) + 2)]
    for row in rows:
        cells = [f"{read(row['before'], name):.3g} → {read(row['after'], name):.3g}" for name in MEASURES]
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {row['outcome']} | {', '.join(row['lost']) or '–'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
