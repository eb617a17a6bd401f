"""Text that fits its room, and none that cannot be read."""

from __future__ import annotations

import pytest
import torch

from dual_process.overlays.lettering import extent, fit, write
from dual_process.overlays.shapes import Canvas


def test_letters_are_as_large_as_the_room_allows_and_never_illegible():
    across, down = extent("field", 9)
    assert fit("field", across, down, 40) == ("field", 9)
    assert fit("field", across - 1, down, 40) is None
    assert fit("field", across, down - 1, 40) is None
    across, down = extent("field", 23)
    assert fit("field", across, down, 23) == ("field", 23)
    assert fit("field", across - 1, down, 23)[1] < 23


def test_words_go_to_the_next_line_where_they_must():
    across, _ = extent("large expanse", 20)
    assert fit("a large  expanse like a field", across, 200, 20) == ("a large\nexpanse like a\nfield", 20)
    assert extent("expanse like a", 20)[0] <= across < extent("a large expanse", 20)[0]


@pytest.mark.parametrize(("x", "y"), [(100, 50), (0, 0), (200, 100)])
def test_ink_and_rim_fill_the_extent_and_stay_inside(x, y):
    canvas = Canvas(100, 200)
    write(canvas, "two\nlines", 20, x, y, "red")
    rows, columns = (canvas.rgba()[3] > 0.1).nonzero().T
    across, down = extent("two\nlines", 20)
    assert columns.max() - columns.min() + 1 == pytest.approx(across, abs=2)
    assert rows.max() - rows.min() + 1 == pytest.approx(down, abs=2)
    if (x, y) == (100, 50):
        assert columns.min() + columns.max() + 1 == pytest.approx(200, abs=3)
        assert rows.min() + rows.max() + 1 == pytest.approx(100, abs=3)


def test_the_rim_stands_out_from_the_ink():
    for color, rim in (("red", [1.0, 1, 1]), ("yellow", [0.0, 0, 0])):
        canvas = Canvas(40, 80)
        write(canvas, "tree", 20, 40, 20, color)
        rgba = canvas.rgba()
        away = (rgba[:3] - torch.tensor(rim)[:, None, None]).abs().amax(0)
        assert (away[rgba[3] > 0.99] < 0.01).sum() > 50
