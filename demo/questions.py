"""The wordings that the demo critic understands; the first of each topic is the one that the controls ask."""

from __future__ import annotations

from ..critics.prompting import with_references
from ..distillation.favourites import LIKENESS

POSTFIX = " Answer with Yes or No."

HORIZON = (
    "Is the overlaid red line aligned with the horizon of the scene?",
    "Does the overlaid red line represent the horizon of the scene?",
)
PALETTE = (
    "Does the color palette overlaid at the bottom match the image?",
    "Is the color palette displayed at the bottom representative of the image's colors?",
    "Do the predominant colors of the image match the color palette overlaid at the bottom?",
)
TIME = ("Is it {}?", "Is this a {} scene?", "Is the image a picture of {}?")
THING = ("Is there {} in the image?", "Does the image show {}?")


STYLE = (  # of the judged picture and picture A: its colors, wherever the horizon is and whatever stands there
    "Is the first picture in the same style as picture A?",
    "Does the first picture have the style of picture A?",
)


def all_texts() -> list[str]:
    """Every text that the tokenizer must know."""
    times = [t.format(w) for t in TIME for w in ("day", "sunset", "night")]
    things = [
        t.format(w) for t in THING for w in ("the sea", "sand", "grass", "a house", "a tree", "a ball", "the sky")
    ]
    extra = "Ignoring the line color , at an dark bright red point A B line weight closer foreground background"
    return [*HORIZON, *PALETTE, *times, *things, POSTFIX, extra]


def comparing_texts() -> list[str]:
    """What the comparing critic must know beside."""
    return [with_references(text, 1) for text in (LIKENESS.text, *STYLE)] + [*LIKENESS.grades]
