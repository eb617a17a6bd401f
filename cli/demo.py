"""`dual-process demo`: the embedded models are taught a control."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..distillation.result import DistillationError
from .shared import (
    OVERWRITE_HELP,
    RESUME_HELP,
    StopOnInterrupt,
    checkpoint_to_resume,
    clear_errors,
    console,
    make_folder,
    print_measures,
    print_verdict,
    progress_bars,
    save_partial,
    say_how_to_resume,
)


class ControlName(str, Enum):
    """The controls that the demo can teach."""

    horizon = "horizon"
    palette = "palette"
    night = "night"
    line_weight = "line_weight"
    depth = "depth"
    composition = "composition"


def demo(
    control: Annotated[ControlName, typer.Option(help="What to teach.")] = ControlName.horizon,
    line: Annotated[float, typer.Option(min=0, max=1, help="Height of the horizon line, fraction from the top.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the results; output/demo_CONTROL by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the control's own by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The control's own by default.")] = None,
    regularizers: Annotated[
        bool, typer.Option(help="Anchors, keep questions and penalties: what keeps pictures.")
    ] = True,
    pairs: Annotated[int, typer.Option(min=1, help="Held-out (prompt, noise) pairs of the evaluation.")] = 64,
    resume: Annotated[bool, typer.Option(help=RESUME_HELP)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json to standard output.")] = False,
) -> None:
    """Teaches the embedded demo models a control and measures whether it worked."""
    with clear_errors():
        from ..demo.catalogue import CATALOGUE
        from ..demo.runner import run_control

        entry = CATALOGUE[control.value]
        changes: dict[str, Any] = {}
        if steps is not None:
            changes["train_steps"] = steps
        if learning_rate is not None:
            changes["learning_rate"] = learning_rate
        if control == ControlName.horizon:
            changes["line"] = line
        if not regularizers:
            changes |= {"penalties": {}, "questions": entry.make(**changes).asked}
        chosen = entry.make(seed=seed, **changes)
        folder = make_folder(output or Path("output") / f"demo_{control.value}")
        checkpoint = checkpoint_to_resume(folder, resume, overwrite)
        generator, critic = entry.load(chosen.prompts)
        with StopOnInterrupt() as should_stop, progress_bars(chosen.recipe.train_steps) as bars:
            try:
                run = run_control(
                    chosen, generator, critic, folder, pairs, bars.on_step, should_stop, checkpoint, bars.on_anchor
                )
            except DistillationError as error:
                save_partial(error.result, folder)
                raise
        if run.result.stop_reason == "interrupted":
            say_how_to_resume(run.result, folder)
        print_measures(run.report)
        print_verdict(run.verdict)
        console.print(f"Written to {folder}: lora.safetensors, before_after.png, progress.png, report.json")
        if as_json:
            print((folder / "report.json").read_text())
