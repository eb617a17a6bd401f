"""Every kind of overlay at four sizes beside stored pictures, which somebody has looked at (tests/golden.py)."""

from __future__ import annotations

import golden
import pytest
from torch.nn import functional as F

from dual_process import overlays
from dual_process.overlays import KINDS

MOST = 8 / 255  # Pillow 10.4 comes to 6
LETTERED = overlays.composition(texts=[(0.5, 0.5, "sky")])


def test_every_kind_has_golden_pictures_and_they_are_small():
    assert {layer.kind for overlay in golden.EACH.values() for layer in overlay.layers} == {*KINDS}
    files = {golden.path(name, *size) for name in golden.EACH for size in golden.SIZES}
    assert files == {*golden.FOLDER.iterdir()}
    assert sum(file.stat().st_size for file in files) < 300_000


@pytest.mark.parametrize("size", golden.SIZES, ids=str)
@pytest.mark.parametrize("name", golden.EACH)
def test_todays_drawing_equals_the_golden_picture(name, size):
    assert golden.difference(golden.draw(golden.EACH[name], *size), golden.stored(name, *size)) < MOST


@pytest.mark.parametrize("size", golden.SIZES, ids=str)
def test_a_line_a_pixel_lower_is_seen(size):
    lower = overlays.horizon(0.3 + 1 / size[0])
    assert golden.difference(golden.draw(lower, *size), golden.stored("horizon", *size)) > 1.5 * MOST


@pytest.mark.parametrize("size", golden.SIZES, ids=str)
def test_a_text_cut_off_is_seen(size):
    bare = golden.background(*size)
    whole = LETTERED.apply(bare)
    columns = (whole != bare).any(dim=1)[0].any(dim=0).nonzero()[:, 0]  # those that the text covers
    cut = whole.clone()
    cut[..., columns[-1] - len(columns) // 10 :] = bare[..., columns[-1] - len(columns) // 10 :]
    one, other = (F.avg_pool2d(picture, golden.SIZES[size])[0] for picture in (whole, cut))
    assert golden.difference(one, other) > 3 * MOST
