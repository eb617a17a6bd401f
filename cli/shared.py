"""What the commands share: errors, stopping, progress, files of a run, and what they print."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..core.errors import DualProcessError, LoraFileError
from ..distillation.result import DistillationResult, Preview, StepReport

if TYPE_CHECKING:
    from ..evaluation import Verdict

# Without markup: paths, questions and errors may hold square brackets ("[/INST]"); our own styles are Text objects.
console = Console(stderr=True, markup=False, emoji=False)


LORA = "lora.safetensors"
CHECKPOINT = "checkpoint.safetensors"
RESUME_HELP = "Go on from the checkpoint in the output folder."
OVERWRITE_HELP = "Begin anew where the output folder holds an unfinished run."


@contextmanager
def clear_errors() -> Iterator[None]:
    """Shows the pack's own errors as one message without a traceback."""
    try:
        yield
    except DualProcessError as error:
        console.print(Text.assemble(("Error:", "bold red"), f" {error}"), highlight=False)
        raise typer.Exit(1) from error


class StopOnInterrupt:
    """While entered, Ctrl-C asks the loop to stop; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __call__(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> StopOnInterrupt:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        self._asked.set()
        signal.signal(signal.SIGINT, self._before)
        console.print("Stopping after this step …")


class Bars:
    """What the terminal shows of a run: the pool of anchors, the steps with loss and P(answer), the last pictures."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._anchors = progress.add_task("anchors", total=None, visible=False, note="")
        self._steps = progress.add_task("distil", total=steps, note="")
        self._pictures = progress.add_task("pictures", total=None, visible=False, note="")

    def on_anchor(self, done: int, total: int) -> None:
        self._progress.update(self._anchors, completed=done, total=total, visible=True)

    def on_step(self, report: StepReport, preview: Preview) -> None:
        known = [p for p in report.p_answer if p == p]
        mean = sum(known) / len(known) if known else float("nan")
        note = f"loss {report.loss:.3f}  P(answer) {mean:.2f}"
        self._progress.update(self._steps, completed=report.step, note=note)

    def on_picture(self, done: int, total: int) -> None:
        self._progress.update(self._pictures, completed=done, total=total, visible=True)


@contextmanager
def progress_bars(steps: int) -> Iterator[Bars]:
    columns = [
        TextColumn("[bold]{task.description}[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress:
        yield Bars(progress, steps)


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DualProcessError(f"Could not make the output folder {folder}: {error}. Choose another.") from error
    return folder


def checkpoint_to_resume(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """What to go on from. An unfinished run is not lost unless the user says so."""
    from ..distillation.checkpoint import Checkpoint

    path = folder / CHECKPOINT
    if resume and overwrite:
        raise DualProcessError("Expected --resume or --overwrite, got both. Go on or begin anew.")
    if resume or overwrite or not path.exists():
        return path if resume else None
    try:
        found = Checkpoint.load(path)
    except LoraFileError:  # nothing that a run could go on from
        return None
    if found.is_unfinished:
        raise DualProcessError(
            f"{folder} holds an unfinished run ({found.steps} of {found.train_steps} steps). Go on with it by "
            "--resume, begin anew by --overwrite, or choose another folder."
        )
    return None


def save_partial(result: DistillationResult, folder: Path) -> None:
    """The LoRA and the checkpoint so far."""
    result.save(folder / LORA)
    result.save_checkpoint(folder / CHECKPOINT)


def say_how_to_resume(result: DistillationResult, folder: Path) -> None:
    console.print(
        f"Interrupted after step {result.steps} of {result.recipe.train_steps}. The LoRA so far is in "
        f"{folder / LORA}; run the same command with --resume to go on."
    )


def print_verdict(verdict: Verdict) -> None:
    console.print(verdict.text, style="bold green" if verdict.outcome == "learned" else "bold red")


def print_measures(report: dict[str, Any]) -> None:
    table = Table("measure", "before", "after", title=f"{report['pairs']} held-out (prompt, noise) pairs")
    for name, before in report["before"].items():
        after = report["after"].get(name, float("nan"))
        rows = [(name, before, after)]
        if isinstance(before, dict):
            rows = [(f"{name}.{key}", before[key], after[key]) for key in before]
        for label, then, now in rows:
            table.add_row(label, f"{then:.3f}", f"{now:.3f}")
    console.print(table)
