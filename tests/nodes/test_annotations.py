"""The nodes whose overlays are typed as places."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.comfyui


def plain(run, node, **inputs):
    return run(node, **inputs)[0].to_dict()[0]


def test_line_weight(run):
    inputs = {"thickness": 0.03, "color": "#0000ff", "x": 0.4, "y": 0.8, "length": 0.5}
    wanted = {"kind": "line_weight", **inputs}
    assert plain(run, "LineWeight", **inputs, compare=0.0) == wanted
    assert plain(run, "LineWeight", **inputs, compare=0.01) == {**wanted, "compare": 0.01}


def test_depth_points_and_what_lies_below(run):
    below = run("HorizonOverlay", position=0.3, color="#ff0000", thickness=0.02, tilt=5.0)[0]
    overlay = run("DepthPoints", points="0.3, 0.4\n\n 0.7,0.8 ", color="#ff0000", radius=0.04, overlay=below)[0]
    line, points = overlay.to_dict()
    assert line["tilt"] == 5.0
    assert points == {"kind": "depth", "points": [[0.3, 0.4], [0.7, 0.8]], "radius": 0.04, "color": "#ff0000"}


def test_depth_order(run):
    inputs = {"points": "0.3, 0.4\n0.7, 0.8", "color": "#ff0000", "radius": 0.04}
    assert plain(run, "DepthPoints", **inputs, order=" ba ")["order"] == "BA"
    assert "order" not in plain(run, "DepthPoints", **inputs, order="")
    with pytest.raises(Exception, match="letters 'AB', the nearest first, got 'BC'"):
        run("DepthPoints", **inputs, order="BC")


def test_a_palette_from_a_picture(run):
    picture = torch.zeros(2, 8, 10, 3)
    picture[0, :, :6] = torch.tensor([1.0, 0, 0])
    picture[0, :, 6:] = torch.tensor([0, 0, 1.0])
    made = run("PaletteOverlay", colors=["#00ff00"], height=0.1, reference=picture, reference_colors=2)
    assert made[0].to_dict()[0]["colors"] == ["#ff0000", "#0000ff"]
    assert made.ui == {"dual_process_colors": ["#ff0000", "#0000ff"]}


def test_the_picture_to_draw_on_is_shown_and_no_part_of_the_overlay(run):
    inputs = {"position": 0.3, "color": "#ff0000", "thickness": 0.02}
    made = run("HorizonOverlay", **inputs, image=torch.rand(2, 6, 8, 3))
    assert made[0].to_dict() == run("HorizonOverlay", **inputs)[0].to_dict()
    (file,) = made.ui["dual_process_backdrop"]
    assert file["type"] == "temp"


def test_composition(run):
    found = plain(
        run,
        "Composition",
        regions="0.1, 0.5, 0.8, 0.4: a field: wide\n0.1, 0.1, 0.2, 0.2",
        lines="0.5, 0.1, 0.5, 0.9: tree",
        texts="0.8, 0.2: sky",
        color="#ff0000",
        thickness=0.01,
    )
    assert found["regions"] == [
        {"x": 0.1, "y": 0.5, "width": 0.8, "height": 0.4, "text": "a field: wide"},
        {"x": 0.1, "y": 0.1, "width": 0.2, "height": 0.2, "text": ""},
    ]
    assert found["lines"] == [{"x1": 0.5, "y1": 0.1, "x2": 0.5, "y2": 0.9, "text": "tree"}]
    assert found["texts"] == [{"x": 0.8, "y": 0.2, "text": "sky"}]


def test_a_palette_on_another_side(run):
    assert plain(run, "PaletteOverlay", colors=["#ff0000"], height=0.1, side="left")["side"] == "left"
    assert "side" not in plain(run, "PaletteOverlay", colors=["#ff0000"], height=0.1)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("0.1, 0.5, 0.8, 0.4: a\n0.1, 0.5: b", "line 2 of regions like '0.5, 0.5, 0.5, 0.5: text', got '0.1, 0.5: b'"),
        ("a field", "line 1 of regions"),
        ("0.1, 0.5, 0.8, wide", "line 1 of regions"),
        ("0.1, 0.5, 0.0, 0.4", "width of a region"),
        ("", "at least one region"),
    ],
)
def test_what_is_typed_wrong_is_named(run, typed, message):
    with pytest.raises(Exception, match=message):
        run("Composition", regions=typed, lines="", texts="", color="#ff0000", thickness=0.01)
