"""The wordings that the demo critic understands; the first of each topic is the one that the controls ask."""

from __future__ import annotations

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


def all_texts() -> list[str]:
    """Every text that the tokenizer must know."""
    times = [t.format(w) for t in TIME for w in ("day", "sunset", "night")]
    things = [
        t.format(w) for t in THING for w in ("the sea", "sand", "grass", "a house", "a tree", "a ball", "the sky")
    ]
    extra = "Ignoring the line color , at an dark bright red point A B line weight closer foreground background"
    return [*HORIZON, *PALETTE, *times, *things, POSTFIX, extra]
