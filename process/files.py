"""What a trajectory leaves: a folder with JSON, pictures and latents, a filmstrip, and chats that train planners."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import LoraFileError, ProcessError
from ..core.picture import Picture
from ..core.replacing import replacing
from ..core.tensor_file import read_tensors, write_tensors
from .painting import DRAFT, Painting
from .protocols import Canvas
from .states import HELD, LOST, PENDING, REFINE, UNJUDGED, VIOLATED, Plan, Reading, Trajectory
from .thinking import OTHERS, PLAN, dumps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAJECTORY, FILMSTRIP, LATENTS = "trajectory.json", "filmstrip.png", "latents.safetensors"
CHATS = "chats.jsonl"
SIGNS = {HELD: ("✓", "#2e8b4e"), VIOLATED: ("✗", "#c03a52"), LOST: ("✗ lost:", "#c03a52"), PENDING: ("…", "#888888")}
UNKNOWN = ("?", "#888888")  # a fact that the critic cannot judge
CELL, LINE = 2.4, 0.2  # inches: of a picture, and of a line of text
COLUMNS = 6  # steps in a row
WIDE = 6.0  # inches: of a picture with what was read of it
DPI = 110


def save_painting(painting: Painting, folder: str | Path, last_step_only: bool = False) -> Path:
    """Writes `trajectory.json`, each step's picture as PNG, latents that are tensors, and the filmstrip; the folder.

    With `last_step_only`, after each step, no other picture is written and no filmstrip: then `paint` can go on after
    it was killed.
    """
    folder = Path(folder)
    latents = {name: canvas.latent for name, canvas in painting.canvases.items() if isinstance(canvas.latent, Tensor)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in list(painting.pictures.items())[-1 if last_step_only else 0 :]:
            _write(folder / f"{name}.png", Picture.from_tensor(picture[0]).png)
        write_tensors(folder / LATENTS, latents, {})
        if not last_step_only:
            filmstrip(painting.trajectory, painting.pictures).savefig(folder / FILMSTRIP)
        _write(folder / TRAJECTORY, painting.trajectory.to_json().encode())
    except (OSError, LoraFileError) as error:
        raise ProcessError(
            f"The trajectory could not be written into {folder.name}: {getattr(error, 'strerror', None) or error}."
        ) from error
    return folder


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as beside:
        beside.write_bytes(content)


def load_painting(folder: str | Path) -> Painting:
    """What `save_painting` wrote. Canvases of a painter whose latents are no tensors have none.

    Raises:
        ProcessError: no trajectory there, one that was edited so that it is none, or a picture that is missing.
    """
    folder = Path(folder)
    try:
        trajectory = Trajectory.from_json((folder / TRAJECTORY).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProcessError(f"Expected a folder with a {TRAJECTORY}, found none in {folder.name}.") from error
    latents = read_tensors(folder / LATENTS)[0] if (folder / LATENTS).exists() else {}
    names = [step.picture for step in trajectory.steps]
    canvases = {name: Canvas(latents.get(name), _read(folder / f"{Path(name).name}.png")) for name in names}
    return Painting(trajectory, canvases)


def _read(path: Path) -> Tensor:
    try:
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
    except OSError as error:
        raise ProcessError(
            f"The trajectory's picture {path.name} is missing or broken; it lies beside its JSON."
        ) from error
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None]


def filmstrip(trajectory: Trajectory, pictures: dict[str, Tensor]) -> Figure:
    """A column a step: the instruction, the picture, whether it was kept, and each fact ticked or crossed."""
    from matplotlib.figure import Figure

    steps, facts = trajectory.steps, {fact.id: fact for fact in trajectory.plan.facts}
    columns, bands = min(len(steps), COLUMNS), math.ceil(len(steps) / COLUMNS)
    across, down = next(iter(pictures.values())).shape[:-3:-1]
    high = CELL * down / across
    height = high + LINE * (len(facts) + 4)
    prompt = textwrap.wrap(trajectory.plan.prompt, 30 * columns, max_lines=3, placeholder=" …")
    figure = Figure(figsize=(CELL * columns, bands * height + LINE * (1 + len(prompt))), layout="constrained", dpi=DPI)
    figure.suptitle("\n".join(prompt), fontsize=11)
    axes = figure.subplots(2 * bands, columns, squeeze=False, height_ratios=[high, LINE * (len(facts) + 1)] * bands)
    for cell in axes.flat:
        cell.set_axis_off()
    for number, step in enumerate(steps):
        band, column = divmod(number, COLUMNS)
        shown, read = axes[2 * band][column], axes[2 * band + 1][column]
        shown.imshow(pictures[step.picture][0].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        what = DRAFT if step.stroke == DRAFT else step.ins
        shown.set_title(textwrap.fill(f"{number}. {what}", 30)[:90], fontsize=8)
        color = "#2e8b4e" if step.accepted else "#c03a52"
        best = ", the result" if number == trajectory.best else ""
        shown.add_patch(_frame(shown, color))
        refined = step.reflection.verdict == REFINE
        back = "no better" if step.stroke == DRAFT else "not there yet: refined" if refined else "taken back"
        lines = [("kept" + best if step.accepted else back, color)]
        lines += [_line(reading, facts[reading.fact].question) for reading in step.reflection.readings]
        for row, (text, ink) in enumerate(lines):
            read.text(0, 1 - row / (len(facts) + 1), text, color=ink, fontsize=7, va="top", transform=read.transAxes)
    return figure


def annotated(picture: Tensor, plan: Plan, readings: Sequence[Reading]) -> Figure:
    """A picture [1, 3, H, W] with the regions of the plan's strokes, green where all is held, and each fact below."""
    from matplotlib.figure import Figure

    down, across = picture.shape[-2:]
    high, rows = WIDE * down / across, [_line(r, _asked(plan, r), 78) for r in readings]
    figure = Figure(figsize=(WIDE, high + LINE * (len(rows) + 1)), dpi=DPI)
    shown, read = figure.subplots(2, 1, height_ratios=[high, LINE * (len(rows) + 1)])
    figure.subplots_adjust(0, 0, 1, 1, hspace=0)
    for cell in (shown, read):
        cell.set_axis_off()
    shown.imshow(picture[0].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest", aspect="auto")
    good = {reading.fact for reading in readings if reading.status in (HELD, UNJUDGED)}
    for stroke in plan.strokes:
        if stroke.region is not None:
            color = SIGNS[HELD if all(f.id in good for f in plan.facts_of(stroke.id)) else VIOLATED][1]
            shown.add_patch(_frame(shown, color, *vars(stroke.region).values()))
    for row, (text, ink) in enumerate(rows):
        read.text(0.02, 1 - (row + 0.5) / (len(rows) + 1), text, color=ink, fontsize=9, va="top")
    return figure


def pixels(figure: Figure) -> Tensor:
    """A figure as a picture [1, 3, H, W] in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(drawn).permute(2, 0, 1)[None]


def _frame(cell: Any, color: str, left: float = 0, top: float = 0, right: float = 1, bottom: float = 1) -> Any:
    """Around a part of a picture, in fractions of it from the upper left corner."""
    from matplotlib.patches import Rectangle

    sides = {"fill": False, "edgecolor": color, "linewidth": 3, "transform": cell.transAxes}
    return Rectangle((left, 1 - bottom), right - left, bottom - top, **sides)


def _asked(plan: Plan, reading: Reading) -> str:
    fact = next(fact for fact in plan.facts if fact.id == reading.fact)
    return f"{fact.question}   P({fact.answer}) = {reading.p:.2f}"


def _line(reading: Reading, question: str, width: int = 38) -> tuple[str, str]:
    sign, color = SIGNS.get(reading.status, UNKNOWN)
    question = question.replace(" in the image?", "?")  # of which every other word is needed
    return f"{sign} {textwrap.shorten(question, width, placeholder='…')}", color


def chats(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    """What planners and inspectors learn from, with pictures by name: the plan, each inspection, each mend."""
    plan, facts = trajectory.plan, {fact.id: fact for fact in trajectory.plan.facts}
    yield _chat(PLAN.format(prompt=plan.prompt, boxes=OTHERS[0]), dumps(plan))
    for step in trajectory.steps:
        for reading in step.reflection.readings:
            if reading.status in (HELD, VIOLATED, LOST):
                is_yes = (facts[reading.fact].answer == "Yes") == (reading.status == HELD)
                yield _chat(facts[reading.fact].question, "Yes" if is_yes else "No", step.picture)
        if step.reflection.instruction:
            wrong = json.dumps({"wrong": step.reflection.text, "instruction": step.reflection.instruction})
            yield _chat(
                f'The picture is to show: "{plan.prompt}". What is wrong, and what mends it?', wrong, step.picture
            )


def _chat(text: str, reply: str, picture: str | None = None) -> dict[str, Any]:
    shown = [] if picture is None else [{"type": "image", "image": f"{picture}.png"}]
    return {
        "messages": [
            {"role": "user", "content": [*shown, {"type": "text", "text": text}]},
            {"role": "assistant", "content": [{"type": "text", "text": reply}]},
        ]
    }


def save_chats(trajectory: Trajectory, path: str | Path) -> Path:
    """Writes `chats`, one JSON object a line."""
    path = Path(path)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats(trajectory)), encoding="utf-8")
    return path
