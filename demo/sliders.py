"""Controls of the demo worlds with a slider: one training, a whole range of values, each of them truly measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import overlays
from ..distillation import Recipe
from ..evaluation.control import Control
from .controls import DEFAULT_PALETTE, horizon_control, palette_control
from .strokes.controls import line_weight_control

# What a slider is trained with, beside its world's preset; benchmarks/README.md has the figures that it comes from.
SETTINGS: Mapping[str, Any] = {"train_steps": 300, "gradient_accumulation": 2}
OTHER_PALETTE = ("#f2c14e", "#e8d9b0", "#5b8e7d", "#2b4a5a")


@dataclass(frozen=True)
class SliderControl:
    """What is taught, and what it comes to at each value of the slider.

    Attributes:
        make: the control for one value alone.
        target: its keyword arguments for a value, −1 to 1; values beyond are the ends.
        changes: fields of the recipe.
    """

    make: Callable[..., Control]
    target: Callable[[float], Mapping[str, Any]]
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """Overlays run from those of the control at −1 to those at 1."""
        first, last = self.at(-1.0).recipe, self.at(1.0).recipe
        questions = tuple(
            one if one.overlay is None else replace(one, overlay=overlays.between(one.overlay, other.overlay))
            for one, other in zip(first.questions, last.questions, strict=True)
        )
        return replace(first, questions=questions)

    def at(self, value: float) -> Control:
        """The control at a value, with its measures and true pictures, trained as the slider is."""
        return self.make(**self.target(value), seed=self.seed, **{**SETTINGS, **self.changes})

    def alone(self, value: float) -> Control:
        """The control at a value as it is trained without a slider."""
        return self.make(**self.target(value), seed=self.seed)


def _share(value: float) -> float:
    return (min(max(value, -1.0), 1.0) + 1) / 2


def horizon_slider(first: float = 0.3, last: float = 0.7, seed: int = 0, **changes: Any) -> SliderControl:
    """The horizon anywhere between two heights, fractions from the top."""
    return SliderControl(horizon_control, lambda v: {"line": first + (last - first) * _share(v)}, seed, changes)


def line_weight_slider(first: float = 1.0, last: float = 4.0, seed: int = 0, **changes: Any) -> SliderControl:
    """Outlines of any thickness between two, in pixels of a picture of 128 × 128."""
    return SliderControl(
        line_weight_control, lambda v: {"thickness": first + (last - first) * _share(v)}, seed, changes
    )


def palette_slider(
    first: Sequence[str] = DEFAULT_PALETTE, last: Sequence[str] = OTHER_PALETTE, seed: int = 0, **changes: Any
) -> SliderControl:
    """Colours anywhere between two palettes."""
    ends = overlays.between(overlays.palette(first), overlays.palette(last))

    def target(value: float) -> dict[str, Any]:
        (strip,) = ends.at(value).layers
        assert isinstance(strip, overlays.PaletteStrip)
        return {"colors": strip.colors}

    return SliderControl(palette_control, target, seed, changes)


SLIDERS: dict[str, Callable[..., SliderControl]] = {
    "horizon": horizon_slider,
    "palette": palette_slider,
    "line_weight": line_weight_slider,
}
