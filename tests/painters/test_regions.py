"""Regions and masks by whole tokens of 16 pixels."""

from __future__ import annotations

import pytest
import torch

from dual_process.core.errors import GeneratorError
from dual_process.painters.regions import place_of, tokens_of, tokens_of_mask
from dual_process.process import Region, Stroke


def stroke(region):
    return Stroke("s", "add", "add a house", "a house", region)


@pytest.mark.parametrize(
    ("region", "grow", "rows", "columns"),
    [
        (Region(0.25, 0.5, 0.75, 1.0), 0, (4, 8), (2, 6)),
        (Region(0.26, 0.45, 0.74, 0.9), 0, (4, 7), (2, 6)),  # to the nearest token
        (Region(0.25, 0.5, 0.75, 1.0), 0.6, (3, 8), (1, 7)),
        (Region(0.99, 0.0, 1.0, 0.01), 0, (0, 1), (7, 8)),  # never empty
    ],
)
def test_a_region_is_snapped_to_tokens(region, grow, rows, columns):
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(tokens_of(region, 8, 8, grow), expected)


def test_a_mask_counts_where_it_covers_half_a_token():
    mask = torch.zeros(1, 32, 48)
    mask[:, :16, :16] = 1  # whole
    mask[:, :9, 16:32] = 1  # a little more than half
    mask[:, 16:, 32:39] = 1  # less
    assert tokens_of_mask(mask, 32, 48).tolist() == [[True, True, False], [False, False, False]]


def test_a_mask_limits_strokes():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    assert torch.equal(place_of(stroke(None), 4, 4, mask=mask), mask)
    inside = place_of(stroke(Region(0, 0, 0.5, 1)), 4, 4, mask=mask)
    assert int(inside.sum()) == 4
    with pytest.raises(GeneratorError, match="outside the mask"):
        place_of(stroke(Region(0, 0.5, 0.5, 1)), 4, 4, mask=mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(32, 32), "empty"),
        (torch.ones(32, 48), "canvas's size, 32 × 32"),
        (torch.ones(2, 32, 32), "one mask"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(GeneratorError, match=words):
        tokens_of_mask(mask, 32, 32)
