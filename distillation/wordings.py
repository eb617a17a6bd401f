"""The questions that an overlay brings along."""

from __future__ import annotations

from ..core.protocols import SpeakingOverlay
from .presets import KEEP_WEIGHT
from .question import KEEP, Question


def overlay_questions(overlay: SpeakingOverlay, answer: str = "Yes", weight: float = 1.0) -> tuple[Question, ...]:
    """A question about each layer of an overlay, in the layer's own wordings; together of the given weight."""
    layers = overlay.wordings()
    return tuple(Question(texts[0], answer, weight / len(layers), overlay, paraphrases=texts[1:]) for texts in layers)


def guard_questions(overlay: SpeakingOverlay, weight: float = KEEP_WEIGHT) -> tuple[Question, ...]:
    """What a generator fails that paints the instruction itself, asked without the overlay; together of the weight."""
    texts = overlay.guards()
    return tuple(Question(text, weight=weight / len(texts), role=KEEP) for text in texts)
