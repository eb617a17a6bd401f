"""What a run leaves behind for people: a before/after picture, a plot, and figures as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .question import CONTROL, KEEP, Question
from .result import StepReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 1.75  # inches that a picture takes in a row
COLUMNS = 8  # at most


def save_before_after(
    path: str | Path, before: Tensor, after: Tensor, captions: Sequence[str] = (), true: Tensor | None = None
) -> None:
    """Saves `before_after_figure`."""
    before_after_figure(before, after, captions, true).savefig(path)


def before_after_figure(
    before: Tensor, after: Tensor, captions: Sequence[str] = (), true: Tensor | None = None
) -> Figure:
    """Draws pictures [B, 3, H, W] in [0, 1] in columns, the base model's above the trained ones of the same noise.

    `true`, what the trained ones should look like, is the third row where it is known. More than eight stand in several
    bands. Large pictures are drawn in up to 512 pixels.
    """
    from matplotlib.figure import Figure

    rows = {"before": before, "after": after} | ({} if true is None else {"true": true})
    columns, bands = min(len(before), COLUMNS), math.ceil(len(before) / COLUMNS)
    dpi = max(130, min(512, before.shape[-1]) / CELL)
    size = (CELL * columns + 0.4, bands * (1.8 * len(rows) + 0.5))
    figure = Figure(figsize=size, layout="constrained", dpi=dpi)
    axes = figure.subplots(bands * len(rows), columns, squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for number, image in enumerate(images.detach().cpu().clamp(0, 1)):
            band, column = divmod(number, COLUMNS)
            cell = axes[band * len(rows) + row][column]
            cell.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            if column == 0:
                cell.set_ylabel(name, fontsize=13)
            if row == 0 and number < len(captions):
                cell.set_title(textwrap.fill(captions[number], 22), fontsize=8)
    for cell in axes.flat:
        if not cell.images:
            cell.set_axis_off()
    return figure


def picture_of(figure: Figure) -> Tensor:
    """A figure as a picture [1, 3, H, W] in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pixels.permute(2, 0, 1)[None].float() / 255


def save_progress(path: str | Path, history: Sequence[StepReport], questions: Sequence[Question]) -> None:
    """Plots over the steps, raw (pale) and as a running mean: the VQA loss, P(answer), and apart P(kept)."""
    from matplotlib.figure import Figure

    roles = [role for role in (CONTROL, KEEP) if any(q.role == role for q in questions)]
    figure = Figure(figsize=(4.5 * (1 + len(roles)), 3.6), layout="constrained")
    loss_axis, *axes = figure.subplots(1, 1 + len(roles))
    steps = [r.step for r in history]
    _draw_series(loss_axis, steps, [r.loss for r in history], "tab:red", "VQA loss")
    loss_axis.set_ylabel("loss, nats")
    for axis, role in zip(axes, roles, strict=True):
        numbers = [number for number, question in enumerate(questions) if question.role == role]
        for color, number in enumerate(numbers):
            label = textwrap.shorten(f"{questions[number].text} → {questions[number].answer}", 60, placeholder=" …")
            _draw_series(axis, steps, [r.p_answer[number] for r in history], f"C{color % 10}", label)
        axis.set_ylabel("P(answer)" if role == CONTROL else "P(answer) of keep questions")
        axis.set_ylim(0, 1)
    for axis in (loss_axis, *axes):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7 if axis is loss_axis else 5.5)
    figure.savefig(path, dpi=130)


def _draw_series(axis: Any, steps: list[int], values: list[float], color: str, label: str) -> None:
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    axis.plot(steps, running_mean(values), color=color, linewidth=2, label=label)


def running_mean(values: Sequence[float], window: int = 10) -> list[float]:
    """Mean of the last `window` values that are numbers, at every place."""
    tensor = torch.tensor(list(values), dtype=torch.float64)
    return [float(tensor[max(0, i - window + 1) : i + 1].nanmean()) for i in range(len(tensor))]


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Writes strict JSON: a number that is not finite becomes null."""
    Path(path).write_text(json.dumps(_finite(data), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
