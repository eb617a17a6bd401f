"""Overlays that run from one to another."""

from __future__ import annotations

import pytest
import torch

from dual_process import overlays
from dual_process.core.errors import OverlayError

HORIZON = overlays.between(overlays.horizon(0.3), overlays.horizon(0.7))
POINTS = [(0.2, 0.3), (0.8, 0.7)], [(0.2, 0.7), (0.8, 0.3)]
RANGES = {
    "horizon": HORIZON,
    "palette": overlays.between(overlays.palette(("#000000", "#ff0000")), overlays.palette(("#ffffff", "#0000ff"))),
    "line weight": overlays.between(overlays.line_weight(0.01), overlays.line_weight(0.03)),
    "depth": overlays.between(*(overlays.depth(points) for points in POINTS)),
    "composition": overlays.between(
        overlays.composition(regions=[(0.1, 0.1, 0.3, 0.3, "a tree")]),
        overlays.composition(regions=[(0.6, 0.5, 0.2, 0.4, "a tree")]),
    ),
    "stack": overlays.palette(("#000000", "#ff0000")) + HORIZON,
}


@pytest.mark.parametrize("ranged", RANGES.values(), ids=RANGES)
def test_ends_are_what_was_given_and_the_middle_lies_between(ranged):
    assert ranged.at(-1.0) == ranged.at(-7.0) == ranged.first
    assert ranged.at(1.0) == ranged.at(7.0) == ranged.last
    assert ranged.at(0.0) not in (ranged.first, ranged.last)
    assert ranged.questions() == ranged.first.questions()


@pytest.mark.parametrize("ranged", RANGES.values(), ids=RANGES)
def test_plain_data_name_what_runs_and_come_back(ranged):
    data = ranged.to_dict()
    assert overlays.build(data) == ranged
    assert any(isinstance(value, dict) and value.keys() == {"from", "to"} for row in data for value in row.values())


def test_values_run_evenly():
    assert HORIZON.at(0.5).layers[0].position == pytest.approx(0.6)
    assert RANGES["palette"].at(0.0).layers[0].colors == ("#808080", "#800080")
    assert RANGES["depth"].at(-0.5).layers[0].points[0] == pytest.approx((0.2, 0.4))


def test_a_batch_shows_the_range_from_end_to_end():
    images = torch.rand(3, 3, 64, 64)
    drawn = HORIZON.apply(images)
    for image, shown, value in zip(images, drawn, (-1.0, 0.0, 1.0), strict=True):
        assert torch.equal(shown, HORIZON.at(value).apply(image[None])[0])
    assert torch.equal(HORIZON.apply(images[:1]), HORIZON.at(0.0).apply(images[:1]))


def test_a_value_is_said_in_the_controls_own_unit():
    assert HORIZON.describe(0.5) == "horizon at 60 %"
    assert HORIZON.describe(-9) == "horizon at 30 %"
    assert RANGES["palette"].describe(0.0) == "palette, 50 % of the way"
    assert RANGES["stack"].describe(1.0) == "horizon at 70 %"  # the palette stays


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        (overlays.horizon(0.3), overlays.horizon(0.3), "both ends are the same"),
        (overlays.horizon(0.3), overlays.line_weight(0.3), "the same kinds of layers"),
        (overlays.palette(("red", "blue")), overlays.palette(("red", "blue", "green")), "lists"),
        (overlays.palette(("red", "blue")), overlays.palette(("red", "blue"), side="top"), "no side"),
    ],
)
def test_ends_without_a_middle_are_refused(first, last, says):
    with pytest.raises(OverlayError, match=says):
        overlays.between(first, last)


def test_a_range_may_be_turned_round():
    turned = overlays.between(HORIZON.last, HORIZON.first)
    assert turned.at(0.5) == HORIZON.at(-0.5)
