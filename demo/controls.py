"""The controls of the demo world: what is asked, what is truly measured, and what must be kept meanwhile.

A new control is one function that returns a `Control`, entered in `CONTROLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import overlays
from ..distillation import Question, Recipe
from ..evaluation.control import Bound, Control, Pairs
from ..evaluation.measures import brightness, horizon_position, palette_error, psnr
from . import questions
from .world import (
    GROUNDS,
    OBJECTS,
    TIMES,
    Words,
    caption,
    palette,
    parse_prompt,
    render,
    scenes_from_noise,
    with_horizon,
    with_time,
)

DEFAULT_LINE = 0.3
DEFAULT_PALETTE = ("#6a4a82", "#e89a5c", "#7a5068", "#4a3250")

_TRAINED = [
    *(caption(Words(t, g, "none")) for t in TIMES for g in GROUNDS),
    *(caption(Words(t, g, OBJECTS[1 + (i + j) % 3])) for i, t in enumerate(TIMES) for j, g in enumerate(GROUNDS)),
]
_HELD_OUT = [caption(Words(t, g, o), 1) for o in ("none", "tree", "ball") for t in TIMES for g in GROUNDS]
_SILENT = [caption(Words(None, g, o)) for g in GROUNDS for o in ("none", "house")]
_HELD_OUT_SILENT = [caption(Words(None, g, o), 1) for o in ("none", "tree", "ball") for g in GROUNDS]


def _recipe(question: Question, prompts: Sequence[str], seed: int, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "train_steps": 200,
        "learning_rate": 5e-4,
        "lr_schedule": "cosine",
        "lora_alpha": 64.0,
        "batch_size": 4,
        "num_inference_steps": 1,
        "penalties": {"velocity": 0.5, "range": 1.0},
    }
    return Recipe(questions=(question,), prompts=tuple(prompts), seed=seed, **{**settings, **changes})


def _spread(values: Tensor) -> dict[str, float]:
    return {"mean": float(values.mean()), "median": float(values.median())}


def palette_class(images: Tensor) -> Tensor:
    """Index into TIMES of the world's palette that is nearest to each picture's mean sky and ground colour, [B]."""
    horizon = (horizon_position(images) * images.shape[-2]).round().long().clamp(1, images.shape[-2] - 1)
    means = torch.stack(
        [
            torch.cat([i[:, :h].mean(dim=(1, 2)), i[:, h:].mean(dim=(1, 2))])
            for i, h in zip(images, horizon, strict=True)
        ]
    )
    known = torch.stack([palette(t, g).reshape(2, 2, 3).mean(dim=1).reshape(6) for t in TIMES for g in GROUNDS])
    return torch.cdist(means, known.to(means)).argmin(dim=1) // len(GROUNDS)


def palette_accuracy(images: Tensor, prompts: Sequence[str]) -> float:
    """Share of pictures whose palette is the one that the prompt names."""
    wanted = torch.tensor([TIMES.index(parse_prompt(p).time or "day") for p in prompts])
    return float((palette_class(images) == wanted).float().mean())


def horizon_shift_px(images: Tensor, base: Tensor) -> dict[str, float]:
    """How far the horizon moved from the base model's picture of the same noise, in pixels."""
    return _spread((horizon_position(images) - horizon_position(base)).abs() * images.shape[-2])


def horizon_control(line: float = DEFAULT_LINE, seed: int = 0, **changes: Any) -> Control:
    """The horizon moves to a red line at `line` of the height from the top."""
    question = Question(questions.HORIZON[0], overlay=overlays.horizon(line))

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        error = (horizon_position(images) - line).abs() * images.shape[-2]
        truth = render(with_horizon(scenes_from_noise(pairs.prompts, pairs.noise), line))
        return {
            "horizon_error_px": _spread(error),
            "within_3pct_height": float((error <= 0.03 * images.shape[-2]).float().mean()),
            "palette_accuracy": palette_accuracy(images, pairs.prompts),
            "psnr_counterfactual": float(psnr(images, truth).mean()),
        }

    return Control(
        name="horizon",
        recipe=_recipe(question, _TRAINED, seed, **changes),
        held_out=tuple(_HELD_OUT),
        measure=measure,
        target=Bound("horizon_error_px.mean", "lower", 0.5, relative=True),
        guards=(Bound("palette_accuracy", "higher", 0.05), Bound("psnr_counterfactual", "higher", 0.5)),
    )


def palette_control(colors: Sequence[str] = DEFAULT_PALETTE, seed: int = 0, **changes: Any) -> Control:
    """The colours of the picture move to the swatches of a strip."""
    question = Question(questions.PALETTE[0], overlay=overlays.palette(colors))
    swatches = torch.tensor([overlays.parse_color(c) for c in colors])

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        return {
            "palette_error_ciede2000": _spread(palette_error(images, swatches)),
            "horizon_shift_px": horizon_shift_px(images, base),
            "brightness": float(brightness(images).mean()),
        }

    return Control(
        name="palette",
        recipe=_recipe(question, _TRAINED, seed, **{"penalties": {"velocity": 0.25, "range": 1.0}, **changes}),
        held_out=tuple(_HELD_OUT),
        measure=measure,
        target=Bound("palette_error_ciede2000.mean", "lower", 0.5, relative=True),
        guards=(Bound("horizon_shift_px.median", "lower", 5.0),),
    )


def night_control(seed: int = 0, **changes: Any) -> Control:
    """Prompts that are silent about the time of day come to mean night; nothing is drawn on the picture."""

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        truth = render(with_time(pairs.prompts, pairs.noise, "night"))
        return {
            "night_share": float((palette_class(images) == TIMES.index("night")).float().mean()),
            "brightness": float(brightness(images).mean()),
            "horizon_shift_px": horizon_shift_px(images, base),
            "psnr_counterfactual": float(psnr(images, truth).mean()),
        }

    return Control(
        name="night",
        recipe=_recipe(Question(questions.TIME[0].format("night")), _SILENT, seed, **changes),
        held_out=tuple(_HELD_OUT_SILENT),
        measure=measure,
        target=Bound("night_share", "higher", 0.2),
        guards=(Bound("horizon_shift_px.median", "lower", 5.0), Bound("psnr_counterfactual", "higher", 0.5)),
    )


CONTROLS: dict[str, Callable[..., Control]] = {
    "horizon": horizon_control,
    "palette": palette_control,
    "night": night_control,
}
