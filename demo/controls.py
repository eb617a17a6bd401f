"""The controls of the demo world: what is asked, what is truly measured, and what must be kept meanwhile.

A new control is one function that returns a `Control`, entered in `CONTROLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import overlays
from ..distillation import PRESETS, Question, Recipe, keep_questions
from ..evaluation.control import LIKENESS, Bound, Control, Guard, Pairs
from ..evaluation.fidelity import Truth
from ..evaluation.measures import brightness, horizon_position, palette_error
from . import questions
from .fidelity import true_pictures
from .world import (
    GROUNDS,
    OBJECTS,
    TIMES,
    Words,
    caption,
    palette,
    parse_prompt,
    scenes_from_noise,
    with_horizon,
    with_time,
)

DEFAULT_LINE = 0.3
# Far palettes have hardly any right base picture to be an anchor, but lines can stay where they are.
PALETTE_PENALTIES = {"anchors": 0.5, "structure": 0.1}
DEFAULT_PALETTE = ("#6a4a82", "#e89a5c", "#7a5068", "#4a3250")

_TRAINED = [
    *(caption(Words(t, g, "none")) for t in TIMES for g in GROUNDS),
    *(caption(Words(t, g, OBJECTS[1 + (i + j) % 3])) for i, t in enumerate(TIMES) for j, g in enumerate(GROUNDS)),
]
_HELD_OUT = [caption(Words(t, g, o), 1) for o in ("none", "tree", "ball") for t in TIMES for g in GROUNDS]
SILENT = [caption(Words(None, g, o)) for g in GROUNDS for o in ("none", "house")]
HELD_OUT_SILENT = [caption(Words(None, g, o), 1) for o in ("none", "tree", "ball") for g in GROUNDS]

# The limits lie between runs whose pictures fell apart and runs that kept them; docs/evaluation.md has the figures.
KEPT = (
    Guard("object_presence", "objects", least=0.6),
    Guard("sky_color_error", "the sky's colours", most=7.0, name="colour error of the sky (CIEDE2000)"),
    Guard("ground_color_error", "the ground's colours", most=7.0, name="colour error of the ground (CIEDE2000)"),
    Guard("unevenness", "even skies and grounds", most=4.0, name="unevenness along rows (CIELAB)"),
    Guard("sharpness", "sharp edges", least=0.4),
    Guard("sharpness", "smooth areas", most=1.5),
    Guard("diversity", "variety between seeds", least=0.6),
    Guard("diversity", "what seeds have in common", most=1.6),
    Guard(LIKENESS, "likeness to the true scenes", least=24.0, name="PSNR in dB"),
)
KEPT_OF_BASE = (
    Guard("object_presence", "objects", least=0.6),
    Guard("unevenness", "even skies and grounds", most=5.0, name="unevenness along rows (CIELAB)"),
    Guard("sharpness", "sharp edges", least=0.35),
    Guard("sharpness", "smooth areas", most=2.5),
    Guard("diversity", "variety between seeds", least=0.35),
    Guard("diversity", "what seeds have in common", most=2.0),
)
PALETTE_KEPT = Guard("palette_accuracy", "the palette that the prompt names", drop=0.05)
HORIZON_KEPT = Guard(
    "horizon_shift_px.median", "the horizon's place", most=5.0, name="median shift of the horizon in pixels"
)


def _recipe(asked: Sequence[Question], prompts: Sequence[str], seed: int, **changes: Any) -> Recipe:
    """The demo's settings; benchmarks/README.md has the figures that they come from."""
    settings = {"questions": tuple(asked), "num_inference_steps": PRESETS["demo"].steps, **PRESETS["demo"].recipe}
    return Recipe(prompts=tuple(prompts), seed=seed, **{**settings, **changes})


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


def own_scenes(pairs: Pairs) -> Truth:
    """What the base model's pictures of the pairs should look like."""
    return true_pictures(scenes_from_noise(pairs.prompts, pairs.noise))


def horizon_control(line: float = DEFAULT_LINE, seed: int = 0, **changes: Any) -> Control:
    """The horizon moves to a red line at `line` of the height from the top."""
    question = Question(questions.HORIZON[0], overlay=overlays.horizon(line))

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        error = (horizon_position(images) - line).abs() * images.shape[-2]
        return {
            "horizon_error_px": _spread(error),
            "within_3pct_height": float((error <= 0.03 * images.shape[-2]).float().mean()),
            "palette_accuracy": palette_accuracy(images, pairs.prompts),
        }

    def truth(pairs: Pairs) -> Truth:
        return true_pictures(with_horizon(scenes_from_noise(pairs.prompts, pairs.noise), line))

    return Control(
        name="horizon",
        recipe=_recipe((question, *keep_questions(PRESETS["demo"], _TRAINED)), _TRAINED, seed, **changes),
        asked=(question,),
        held_out=tuple(_HELD_OUT),
        measure=measure,
        target=Bound("horizon_error_px.mean", "lower", 0.5, relative=True, name="the mean horizon error in pixels"),
        guards=(*KEPT, PALETTE_KEPT),
        own=own_scenes,
        truth=truth,
    )


def palette_control(colors: Sequence[str] = DEFAULT_PALETTE, seed: int = 0, **changes: Any) -> Control:
    """The colours of the picture move to the swatches of a strip."""
    question = Question(questions.PALETTE[0], overlay=overlays.palette(colors))
    penalties = {**PRESETS["demo"].recipe["penalties"], **PALETTE_PENALTIES}
    changes = {"penalties": penalties, "adam_beta2": 0.999, **changes}  # a far palette comes nearer than with 0.99
    swatches = torch.tensor([overlays.parse_color(c) for c in colors])

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        return {
            "palette_error_ciede2000": _spread(palette_error(images, swatches)),
            "horizon_shift_px": horizon_shift_px(images, base),
            "brightness": float(brightness(images).mean()),
        }

    return Control(
        name="palette",
        recipe=_recipe(
            (question, *keep_questions(PRESETS["demo"], _TRAINED)),
            _TRAINED,
            seed,
            **changes,
        ),
        asked=(question,),
        held_out=tuple(_HELD_OUT),
        measure=measure,
        target=Bound(
            "palette_error_ciede2000.mean", "lower", 0.5, relative=True, name="the mean colour distance (CIEDE2000)"
        ),
        guards=(*KEPT_OF_BASE, HORIZON_KEPT),
        own=own_scenes,
    )


def night_control(seed: int = 0, **changes: Any) -> Control:
    """Prompts that are silent about the time of day come to mean night; nothing is drawn on the picture."""
    question = Question(questions.TIME[0].format("night"))

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        return {
            "night_share": float((palette_class(images) == TIMES.index("night")).float().mean()),
            "brightness": float(brightness(images).mean()),
            "horizon_shift_px": horizon_shift_px(images, base),
        }

    def truth(pairs: Pairs) -> Truth:
        return true_pictures(with_time(pairs.prompts, pairs.noise, "night"))

    return Control(
        name="night",
        recipe=_recipe((question, *keep_questions(PRESETS["demo"], SILENT)), SILENT, seed, **changes),
        asked=(question,),
        held_out=tuple(HELD_OUT_SILENT),
        measure=measure,
        target=Bound("night_share", "higher", 0.2, name="the share of night pictures"),
        guards=(*KEPT, HORIZON_KEPT),
        own=own_scenes,
        truth=truth,
    )


CONTROLS: dict[str, Callable[..., Control]] = {
    "horizon": horizon_control,
    "palette": palette_control,
    "night": night_control,
}
