"""The questions that come with an overlay."""

from __future__ import annotations

import pytest

from dual_process import overlays
from dual_process.distillation import guard_questions, overlay_questions


@pytest.mark.parametrize(
    ("overlay", "text"),
    [
        (overlays.horizon(0.3), "Is the overlaid red line aligned with the horizon of the scene?"),
        (overlays.horizon(0.3, color="#1010f0"), "Does the overlaid blue line represent the horizon of the scene?"),
        (overlays.palette(["red"]), "Does the color palette overlaid at the bottom match the image?"),
        (
            overlays.palette(["red"]),
            "Is the color palette displayed at the bottom representative of the image's colors?",
        ),
        (
            overlays.palette(["red"], side="left"),
            "Do the predominant colors of the image match the color palette overlaid on the left?",
        ),
        (overlays.line_weight(0.03), "Does the line weight of the image match the red line overlaid at the bottom?"),
        (
            overlays.line_weight(0.005, y=0.1),
            "Ignoring the line color, does the line weight of the image match the red line overlaid at the top?",
        ),
        (
            overlays.depth([(0.3, 0.3), (0.7, 0.7)], "BA"),
            "Is Point B in the foreground and Point A in the background?",
        ),
        (overlays.depth([(0.3, 0.3), (0.7, 0.7)], "BA"), "Is Point B much closer to the camera than Point A?"),
        (
            overlays.depth([(0.3, 0.3), (0.7, 0.7), (0.1, 0.9)], "CAB"),
            "Is Point C closer to the camera than Point A, and Point A closer to the camera than Point B?",
        ),
        (
            overlays.composition(texts=[(0.5, 0.5, "sky")]),
            "Does the composition of the image match the overlaid red instructions?",
        ),
    ],
)
def test_wordings_are_the_authors_with_the_overlays_own_parameters(overlay, text):
    assert text in overlay.questions()


def test_a_stack_has_those_of_all_its_layers_and_each_guard_once():
    line, strip = overlays.horizon(0.3), overlays.palette(["red"])
    assert (line + strip + strip).questions() == line.questions() + strip.questions() * 2
    assert (line + strip + strip).guards() == line.guards() + strip.guards()
    assert overlays.line_weight(0.02).guards() == ("Is the line in the drawing black?",)


def test_an_overlay_becomes_questions_with_its_own_wordings_and_guards():
    line, strip = overlays.horizon(0.3), overlays.palette(["red"])
    (one,) = overlay_questions(line, weight=2.0)
    assert (one.texts, one.answer, one.weight, one.overlay) == (line.questions(), "Yes", 2.0, line)
    stack = line + strip + line
    asked = overlay_questions(stack)
    assert [q.texts for q in asked] == [line.questions(), strip.questions()]
    assert [(q.weight, q.overlay) for q in asked] == [(0.5, stack)] * 2
    guards = guard_questions(stack)
    assert tuple(q.text for q in guards) == stack.guards()
    assert [(q.answer, q.weight, q.overlay, q.role) for q in guards] == [("Yes", 0.25, None, "keep")] * 2
