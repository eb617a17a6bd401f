"""Hidden tastes: persons who mark pictures of the demo world by something that they never say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..distillation import PRESETS, Recipe, keep_questions
from ..distillation.favourites import LIKENESS, PACE, Picks
from ..evaluation.measures import horizon_position
from .controls import HELD_OUT_SILENT, SILENT, palette_class
from .world import TIMES

LIKED, REJECTED = 2, 1  # marks a round, at most


@dataclass(frozen=True)
class Taste:
    """What a person likes about pictures [B, 3, H, W] in [0, 1].

    Attributes:
        score: [B]; the higher, the better.
        enough: from which score on a picture is to the person's taste.
    """

    name: str
    score: Callable[[Tensor], Tensor]
    enough: float

    def share(self, pictures: Tensor) -> float:
        """The share of pictures that are to the person's taste."""
        return float((self.score(pictures) >= self.enough).float().mean())

    def picks(self, pictures: Tensor) -> Picks:
        """The best two that are to the person's taste, or the best one; the worst one is rejected if it is not."""
        scores = self.score(pictures)
        order = scores.argsort(descending=True).tolist()
        liked = [n for n in order[:LIKED] if scores[n] >= self.enough] or order[:1]
        rejected = [n for n in order[-REJECTED:] if scores[n] < self.enough]
        return Picks(tuple(sorted(liked)), tuple(rejected))


def _night(pictures: Tensor) -> Tensor:
    """1 for a picture in the night's colours and 0 for others, less how bright it is."""
    return (palette_class(pictures) == TIMES.index("night")).float() - 0.5 * pictures.mean(dim=(1, 2, 3))


def _warmth(pictures: Tensor) -> Tensor:
    """By how much red is above blue."""
    return pictures[:, 0].mean(dim=(1, 2)) - pictures[:, 2].mean(dim=(1, 2))


TASTES = {
    taste.name: taste
    for taste in (
        Taste("night", _night, 0.5),
        Taste("a low horizon", horizon_position, 0.5),  # below the middle: counted from the top
        Taste("warm colours", _warmth, 0.05),
    )
}


def taste_recipe(round_steps: int, seed: int = 0, **changes: Any) -> tuple[Recipe, Sequence[str]]:
    """How rounds train on prompts that are silent about the time of day, and the held-out ones that are shown."""
    preset = PRESETS["demo"].recipe
    settings = {**preset, "train_steps": round_steps, "learning_rate": PACE * preset["learning_rate"], **changes}
    kept = keep_questions(PRESETS["demo"], SILENT)
    return Recipe(questions=(LIKENESS, *kept), prompts=tuple(SILENT), seed=seed, **settings), HELD_OUT_SILENT
