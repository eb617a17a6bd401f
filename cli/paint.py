"""`dual-process paint`: a picture is made stroke by stroke."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..core.errors import DualProcessError, ProcessError
from .shared import OVERWRITE_HELP, StopOnInterrupt, clear_errors, console, make_folder
from .train import QUANTIZATION_HELP, Quantization

if TYPE_CHECKING:
    from ..process import Painter, Painting, Plan, Settings, Thinker

RESUME = "Go on with the picture in the output folder; everything else as before, only the budget may be larger."


class Mode(str, Enum):
    """How a painter changes a picture."""

    kontext = "kontext"
    inpaint = "inpaint"


def paint(
    prompt: Annotated[str, typer.Argument(help="What the picture is to show.")],
    painter: Annotated[Path | None, typer.Option(help="Folder of a Flux pipeline; the demo's by default.")] = None,
    critic: Annotated[
        Path | None, typer.Option(help="Folder of a transformers vision-language model; the demo's by default.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="How a stroke is made: by an editor that is told, or by painting its region anew.")
    ] = Mode.kontext,
    plan: Annotated[Path | None, typer.Option(help="Your own plan, a JSON file; else the critic plans.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("output/paint"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same steps.")] = 0,
    budget: Annotated[int | None, typer.Option(min=1, help="Passes of the painter at most.")] = None,
    size: Annotated[int, typer.Option(min=16, help="Width and height in pixels; the demo's are 128.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps of a pass; the demo's is one.")] = 28,
    offload: Annotated[bool, typer.Option("--offload", help="Keep the painter's weights in main memory.")] = False,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the best there is by default.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help=QUANTIZATION_HELP)] = None,
    resume: Annotated[bool, typer.Option(help=RESUME)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trajectory as JSON.")] = False,
) -> None:
    """Makes a picture step by step: plan, draft, inspect, refine. Without models of yours, with the demo's."""
    with clear_errors():
        from ..process import ProcessFailed
        from ..process import paint as paint_picture
        from ..process.files import CHATS, FILMSTRIP, TRAJECTORY, save_chats, save_painting
        from ..process.words import trajectory_in_words

        wanted = prompt if plan is None else _read_plan(plan, prompt)
        folder = make_folder(output)
        earlier = _earlier(folder, resume, overwrite)
        options = {"height": size, "width": size, "steps": steps, "offload": offload}
        who, thinker, settings = _models(painter, critic, mode, device, quantization, options)
        if budget is not None:
            settings = replace(settings, budget=budget)
        columns = [TextColumn("[bold]{task.description}[/]"), BarColumn(), MofNCompleteColumn()]
        with StopOnInterrupt() as should_stop, Progress(*columns, console=console) as progress:
            bar = progress.add_task("passes", total=settings.budget)

            there = 0 if earlier is None else len(earlier.trajectory.steps)

            def on_step(painting: Painting) -> None:
                if len(painting.trajectory.steps) > there:
                    save_painting(painting, folder, last_step_only=True)
                progress.update(bar, completed=painting.trajectory.passes)

            try:
                made = paint_picture(wanted, who, thinker, settings, seed, on_step, should_stop, earlier)
            except ProcessFailed as error:
                save_painting(error.painting, folder)
                raise ProcessError(f"{error} They lie in {folder}; run the same command with --resume.") from error
        save_painting(made, folder)
        save_chats(made.trajectory, folder / CHATS)
        console.print(trajectory_in_words(made.trajectory), highlight=False)
        if made.trajectory.stop_reason == "interrupted":
            console.print("Run the same command with --resume to go on.")
        result = made.trajectory.steps[made.trajectory.best].picture
        console.print(f"Written to {folder}: {result}.png is the picture, {FILMSTRIP}, {TRAJECTORY}, {CHATS}")
        if as_json:
            print(made.trajectory.to_json())


def _models(
    painter: Path | None,
    critic: Path | None,
    mode: Mode,
    device: str | None,
    quantization: Quantization | None,
    options: dict[str, Any],
) -> tuple[Painter, Thinker, Settings]:
    """The user's models, or the demo's."""
    if (painter is None) != (critic is None):
        raise DualProcessError("Expected both --painter and --critic, or neither for the demo's models, got one.")
    if painter is None or critic is None:
        from ..demo import strokes
        from ..demo.strokes.process import SETTINGS, StrokesThinker, load_painter

        return load_painter(), StrokesThinker(strokes.load()[1]), SETTINGS
    from ..critics import load_critic
    from ..painters.diffusers import load_inpaint, load_kontext
    from ..process import CriticThinker, Settings

    load = load_kontext if mode == Mode.kontext else load_inpaint
    loaded = load_critic(critic, device=device, quantization=quantization and quantization.value)
    return load(painter, device, **options), CriticThinker(loaded), Settings()


def _read_plan(path: Path, prompt: str) -> Plan:
    from ..process import read_plan

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProcessError(f"Expected a plan as a JSON file at {path}: {error.strerror}.") from error
    return read_plan(text, prompt)


def _earlier(folder: Path, resume: bool, overwrite: bool) -> Painting | None:
    """What to go on from. A picture that is there is not lost unless the user says so."""
    from ..process.files import TRAJECTORY, load_painting

    if resume and overwrite:
        raise DualProcessError("Expected --resume or --overwrite, got both. Go on or begin anew.")
    if resume:
        return load_painting(folder)
    if (folder / TRAJECTORY).exists() and not overwrite:
        raise DualProcessError(f"{_holds(folder)} begin anew by --overwrite, or choose another folder by --output.")
    return None


def _holds(folder: Path) -> str:
    """What is in a folder with a trajectory, and what can be done with it."""
    from ..process.files import load_painting
    from ..process.painting import DONE, NO_GAIN

    try:
        earlier = load_painting(folder).trajectory
    except DualProcessError as error:
        return f"{folder} holds a picture that cannot be gone on with ({error}):"
    if earlier.stop_reason in (DONE, NO_GAIN):
        return f"{folder} holds the finished picture of {earlier.plan.prompt!r}:"
    return f"{folder} holds an unfinished picture of {earlier.plan.prompt!r}: go on with it by --resume,"
