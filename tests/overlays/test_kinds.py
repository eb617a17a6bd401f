"""What each kind draws, measured on the drawing, from 64 to 2048 pixels and on a single one."""

from __future__ import annotations

import json
import math

import golden
import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image, ImageDraw

from dual_process import overlays
from dual_process.distillation import OverlayError
from dual_process.overlays import (
    KINDS,
    Composition,
    DepthPoints,
    HorizonLine,
    ImageOverlay,
    LineWeight,
    Overlay,
    PaletteStrip,
    Region,
)

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

SIZES = [(64, 64), (512, 512), (1344, 768), (768, 1344), (2048, 2048)]
BARS = Image.new("L", (6, 4), 255)
BARS.paste(0, [0, 0, 3, 4])
EACH = {
    "horizon": overlays.horizon(0.35, tilt=8),
    "palette": overlays.palette(["#6a4a82", "red", "#ffffff"], side="left"),
    "line_weight": overlays.line_weight(0.03, compare=0.01),
    "depth": overlays.depth([(0.3, 0.35), (0.7, 0.75), (0.5, 0.1)], "BAC"),
    "composition": overlays.composition(
        [(0.05, 0.55, 0.6, 0.4, "field")], [(0.1, 0.5, 0.9, 0.5), (0.8, 0.6, 0.8, 0.9)], [(0.5, 0.2, "sky")]
    ),
    "image": Overlay((ImageOverlay.from_image(BARS, "transparent", 0.5),)),
}


def test_every_kind_is_tested_here():
    assert set(EACH) == set(KINDS)


@pytest.mark.parametrize("kind", EACH)
def test_each_kind_has_three_wordings_and_a_guard(kind):
    texts, guards = EACH[kind].questions(), EACH[kind].guards()
    assert len(set(texts)) == 3
    assert guards
    assert all(text.endswith("?") and text.count("?") == 1 for text in (*texts, *guards))


@pytest.mark.parametrize("size", [*SIZES, (13, 170)])
def test_a_level_horizon_is_drawn_as_ever(size):
    height, width = size
    half = max(0.02 * height, 1.0) / 2
    edge = torch.arange(height, dtype=torch.float32)
    alpha = ((edge + 1).clamp(max=0.3 * height + half) - edge.clamp(min=0.3 * height - half)).clamp(0, 1)
    assert torch.equal(HorizonLine(0.3).draw(height, width)[3], alpha[:, None].expand(height, width))


@pytest.mark.parametrize("tilt", [-45, -8, 3, 30])
def test_a_tilted_horizon_equals_pillows_polygon(tilt):
    height, width, by = 96, 160, 16
    slope = math.tan(math.radians(tilt))
    half = 0.05 * height / 2 / math.cos(math.radians(tilt))
    left, right = 0.5 * height + slope * width / 2, 0.5 * height - slope * width / 2  # above 0: the right end is higher
    corners = [(0, left - half), (width, right - half), (width, right + half), (0, left + half)]
    mask = Image.new("L", (width * by, height * by))
    ImageDraw.Draw(mask).polygon([(x * by, y * by) for x, y in corners], fill=255)
    truth = np.asarray(mask.resize((width, height), Image.Resampling.BOX)) / 255
    drawn = HorizonLine(0.5, 0.05, tilt=tilt).draw(height, width)[3].numpy()
    assert abs(drawn - truth).max() < 0.3
    assert abs(drawn - truth).mean() < 0.005
    assert drawn.sum() == pytest.approx(truth.sum(), rel=0.03)


def test_a_palette_lies_along_each_side():
    colors = ["#ff0000", "#00ff00", "#0000ff"]
    drawn = {side: PaletteStrip(colors, 0.25, side).draw(24, 36) for side in ("bottom", "top", "left", "right")}
    assert torch.equal(drawn["top"][:, :6], drawn["bottom"][:, 18:])
    assert torch.equal(drawn["left"][:, :, :9], drawn["right"][:, :, 27:])
    assert [int(d[3].sum()) for d in drawn.values()] == [6 * 36, 6 * 36, 9 * 24, 9 * 24]
    assert drawn["left"][:3, [0, 7, 8, 15, 16, 23], 8].argmax(0).tolist() == [0, 0, 1, 1, 2, 2]
    assert drawn["top"][:3, 5, [0, 11, 12, 35]].argmax(0).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize("side", ["bottom", "right"])
def test_a_palette_of_one_or_thirty_colours(count, side):
    colors = [f"#{8 * i:02x}40ff" for i in range(count)]
    drawn = PaletteStrip(colors, 0.2, side).draw(64, 64)
    assert len(set(map(tuple, drawn[:3, drawn[3] == 1].T.tolist()))) == count
    assert PaletteStrip(colors, 0.2, side).draw(1, 1)[3].item() == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("x", "y"), [(0.5, 0.92), (0.0, 0.0), (1.0, 1.0), (0.3, 0.41)])
def test_a_bar_is_as_thick_and_long_as_said_and_inside(size, x, y):
    height, width = size
    alpha = LineWeight(0.025, x=x, y=y).draw(height, width)[3]
    assert alpha.sum(0).max().item() == pytest.approx(0.025 * height, abs=1e-3)
    assert alpha.sum(1).max().item() == pytest.approx(0.6 * width, abs=1e-2)
    assert alpha.sum().item() == pytest.approx(0.025 * height * 0.6 * width, rel=1e-3)
    assert (alpha > 0).sum(0).max() - (alpha == 1).sum(0).max() <= 1  # one edge lies between pixels


@pytest.mark.parametrize("size", SIZES)
def test_two_bars_lie_beside_each_other(size):
    height, width = size
    alpha = LineWeight(0.04, compare=0.02, y=0.6).draw(height, width)[3]
    foot = alpha[int(0.6 * height) - round(0.02 * height) :]  # the letters are above
    assert foot[:, round(0.3 * width)].sum().item() == pytest.approx(0.04 * height, abs=1.01)
    whole = alpha[:, round(0.76 * width)]  # of B, beside its letter
    assert whole.sum().item() == pytest.approx(max(1.0, 0.02 * height), abs=1e-3)
    assert alpha[:, width // 2].max() == 0


@pytest.mark.parametrize("size", SIZES)
def test_dots_lie_on_their_points(size):
    height, width = size
    points = [(0.3, 0.35), (0.7, 0.75)]
    drawn = DepthPoints(points).draw(height, width)
    radius = max(0.035 * min(size), 6.5)
    for half, (x, y) in zip((slice(0, width // 2), slice(width // 2, width)), points, strict=True):
        alpha = drawn[3, :, half]
        across = torch.arange(width)[half] + 0.5
        assert alpha.sum().item() == pytest.approx(math.pi * radius**2, rel=0.03)
        assert ((alpha.sum(0) * across).sum() / alpha.sum()).item() == pytest.approx(x * width, abs=0.3)
        down = (alpha.sum(1) * (torch.arange(height) + 0.5)).sum() / alpha.sum()
        assert down.item() == pytest.approx(y * height, abs=0.3)


def letters(points, height, width):
    """The ink of each dot's letter, 24 × 24 in a row."""
    white = DepthPoints(points).draw(height, width)[1]  # red has no green
    radius, found = max(0.035 * min(height, width), 6.5), []
    for x, y in points:
        away = torch.hypot(torch.arange(width) + 0.5 - x * width, (torch.arange(height) + 0.5 - y * height)[:, None])
        ink = white * (away < 0.78 * radius)  # within the rim
        rows, columns = ((ink > 0.3).any(axis).nonzero().flatten() for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found.append(torch.nn.functional.interpolate(ink[None, None], (24, 24), mode="area").flatten())
    return torch.stack(found)


@pytest.mark.parametrize("size", SIZES)
def test_letters_can_be_told_apart_at_every_size(size):
    points = [(0.15 + 0.35 * (i % 3), 0.25 + 0.5 * (i // 3)) for i in range(6)]
    alike = torch.corrcoef(torch.cat([letters(points, *size), letters(points, 1000, 1000)]))[:6, 6:]
    assert alike.argmax(1).tolist() == list(range(6))


def test_dots_at_the_edge_are_whole():
    alpha = DepthPoints([(0, 0), (1, 1)], radius=0.1).draw(200, 100)[3]
    assert alpha.sum().item() == pytest.approx(2 * math.pi * 10**2, rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_a_region_is_outlined_and_its_text_within(size):
    height, width = size
    plain, labelled = (Composition([(0.25, 0.5, 0.5, 0.25, text)]).draw(height, width)[3] for text in ("", "a field"))
    stroke = max(1, round(0.008 * min(size)))
    left, right, top, bottom = width // 4, width // 4 * 3, height // 2, height // 4 * 3
    wanted = torch.zeros(height, width)
    wanted[top:bottom, left:right] = 1
    wanted[top + stroke : bottom - stroke, left + stroke : right - stroke] = 0
    assert torch.equal(plain, wanted)
    text = labelled - plain
    within = text[top + stroke : bottom - stroke, left + stroke : right - stroke]
    assert within.sum() > 100
    assert (text != 0).sum() == (within != 0).sum()


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("line", [(0.5, 0.1, 0.5, 0.9), (0.95, 0.1, 0.95, 0.9), (0.1, 0.5, 0.9, 0.5), (0.1, 1, 0.9, 1)])
def test_the_text_of_a_line_lies_beside_it(size, line):
    plain, labelled = (
        Composition(lines=[(*line, text)]).draw(*size) for text in ("", "this line represents a vertical object")
    )
    assert torch.equal(labelled[:, plain[3] == 1], plain[:, plain[3] == 1])
    assert (labelled[3] > plain[3]).sum() > 300


def test_level_lines_of_a_pixel_are_crisp():
    alpha = Composition(lines=[(0.1, 0.5, 0.9, 0.5), (0.3, 0.1, 0.3, 0.4)]).draw(64, 64)[3]
    for across in (alpha[:, 32], alpha[10]):
        assert across.max().item() == pytest.approx(1, abs=1e-3)
        assert across.sum().item() == pytest.approx(1, abs=1e-3)


def test_a_text_too_long_for_its_region_is_refused_with_what_to_do():
    layer = Composition([Region(0.1, 0.1, 0.3, 0.2, "a large expanse like a field")])
    layer.draw(512, 512)
    with pytest.raises(
        OverlayError, match=r"'a large expanse like a field' is too long.*17 × 11 pixels.*64 × 64.*enlarge"
    ):
        layer.draw(64, 64)


@pytest.mark.parametrize("kind", EACH)
def test_a_preview_equals_training_to_one_of_255(kind):
    picture = (torch.rand(1, 3, 200, 120, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    trained = EACH[kind].apply(picture)[0]
    rgba = EACH[kind].layers[0].draw(200, 120)
    below = Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().byte().numpy()).convert("RGBA")
    above = Image.fromarray((rgba.permute(1, 2, 0) * 255).round().byte().numpy())
    wanted = np.asarray(Image.alpha_composite(below, above).convert("RGB")).astype(np.float32) / 255
    assert abs(trained.permute(1, 2, 0).numpy() - wanted).max() <= 1.01 / 255


@pytest.mark.parametrize("overlay", golden.EACH.values(), ids=golden.EACH)
def test_the_gradient_equals_finite_differences(overlay):
    random = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 80, generator=random, dtype=torch.float64)
    weight, way = (torch.randn(1, 3, 64, 80, generator=random, dtype=torch.float64) for _ in range(2))

    def measure(image):
        return (weight * overlay.apply(image).square()).sum()

    leaf = picture.clone().requires_grad_()
    measure(leaf).backward()
    wanted = (measure(picture + 1e-5 * way) - measure(picture - 1e-5 * way)) / 2e-5
    assert (leaf.grad * way).sum().item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("kind", EACH)
def test_plain_data_goes_through_json_and_toml(kind):
    data = EACH[kind].to_dict()
    assert overlays.build(json.loads(json.dumps(data))) == EACH[kind]
    assert overlays.build(tomllib.loads(tomli_w.dumps({"overlay": data}))["overlay"]) == EACH[kind]
    assert len({EACH[kind], overlays.build(data)}) == 1  # hashable, as the drawn layers are kept by them


def test_plain_data_is_written_as_by_earlier_versions():
    assert overlays.horizon(0.3).to_dict() == [
        {"kind": "horizon", "position": 0.3, "thickness": 0.02, "color": "#ff0000"}
    ]
    assert overlays.palette(["red"]).to_dict() == [{"kind": "palette", "colors": ["red"], "height": 0.15}]


def test_a_new_kind_is_a_class_and_a_decorator(monkeypatch):
    from dataclasses import dataclass

    from dual_process.overlays import layer

    monkeypatch.setattr(layer, "KINDS", dict(KINDS))

    @layer.register
    @dataclass(frozen=True)
    class Veil:
        kind = "veil"
        strength: float = 0.5

        def draw(self, height, width):
            return torch.full((4, height, width), self.strength)

    veil = overlays.build({"kind": "veil", "strength": 0.25})
    assert veil.to_dict() == [{"kind": "veil", "strength": 0.25}]
    assert torch.equal(veil.apply(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.8125))


@pytest.mark.parametrize("kind", sorted(set(EACH) - {"composition"}))
def test_one_pixel_is_enough(kind):
    drawn = EACH[kind].apply(torch.full((1, 3, 1, 1), 0.5))
    assert drawn.shape == (1, 3, 1, 1)
    assert drawn.isfinite().all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_one_pixel_holds_outlines_but_no_text():
    assert overlays.composition([(0, 0, 1, 1)]).apply(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [1, 0, 0]
    with pytest.raises(OverlayError, match="1 × 1"):
        EACH["composition"].apply(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_pictures_of_every_mode_are_laid_on(mode):
    grey = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    if mode == "1":
        grey[:] = [[0, 255, 0], [255, 0, 255]]
    if mode.startswith("I"):
        picture = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
        assert picture.mode == mode
    else:
        picture = Image.fromarray(grey).convert(mode)
    drawn = Overlay((ImageOverlay.from_image(picture, "transparent", 1.0),)).apply(torch.full((1, 3, 2, 3), 0.5))
    assert (drawn[0, 0] * 255 - torch.from_numpy(grey)).abs().max() <= 1


def test_a_png_of_16_bits_is_read_as_it_is(tmp_path):
    Image.fromarray(np.full((3, 3), 40 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    for layer in (
        ImageOverlay.from_file(tmp_path / "deep.png", "transparent", 1.0),
        ImageOverlay((tmp_path / "deep.png").read_bytes(), "transparent", 1.0),
    ):
        assert (layer.draw(5, 5)[:3] * 255 - 40).abs().max() < 0.01


@pytest.mark.parametrize("mode", ["solid", "transparent"])
def test_a_picture_of_one_pixel_covers_all(mode):
    drawn = ImageOverlay.from_image(Image.new("RGB", (1, 1), "#ff0000"), mode, 1.0).draw(7, 5)
    assert torch.allclose(drawn, torch.tensor([1.0, 0, 0, 1])[:, None, None].expand(4, 7, 5), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizonLine(0.3, tilt=60), "degrees from -45 to 45, got 60"),
        (lambda: HorizonLine(0.3, tilt=float("nan")), "tilt"),
        (lambda: HorizonLine(0.3, tilt="level"), "tilt"),
        (lambda: PaletteStrip(("red",), side="middle"), "'right'.*'middle'"),
        (lambda: LineWeight(0), "thickness"),
        (lambda: LineWeight(0.02, compare=2), "compare"),
        (lambda: LineWeight(0.02, x=-0.1), "x as a fraction"),
        (lambda: LineWeight(0.02, color="rot"), "rot"),
        (lambda: DepthPoints([(0.5, 0.5)]), "2 to 26 points"),
        (lambda: DepthPoints([(i / 27, i / 27) for i in range(27)]), "2 to 26 points"),
        (lambda: DepthPoints("AB"), "2 to 26 points"),
        (lambda: DepthPoints([(0.5, 0.5), 3]), r"point B as \[x, y\]"),
        (lambda: DepthPoints([(0.5, 0.5), (0.1, 0.2, 0.3)]), r"point B as \[x, y\]"),
        (lambda: DepthPoints([(0.5, 0.5), (0.5, 1.2)]), "y of point B"),
        (lambda: DepthPoints([(0.5, 0.5), (0.5, "low")]), "y of point B"),
        (lambda: DepthPoints([(0.1, 0.1), (0.5, 0.5), (0.5, 0.51)]), "B and C lie on top of each other.*0.07 apart"),
        (lambda: DepthPoints([(0.1, 0.1), (0.5, 0.5)], order="AC"), "'AB'.*'AC'"),
        (lambda: DepthPoints([(0.1, 0.1), (0.5, 0.5)], order="AAB"), "'AB'.*'AAB'"),
        (lambda: Composition(), "at least one region"),
        (lambda: Composition([(0.1, 0.1, 0, 0.5)]), "width of a region"),
        (lambda: Composition([(0.1, 0.1, 0.5, 0)]), "height of a region"),
        (lambda: Composition([(0.6, 0.1, 0.5, 0.5)]), "sticks out"),
        (lambda: Composition([(0.1, 0.1)]), "each of the regions"),
        (lambda: Composition([{"x": 0.1, "left": 0.1}]), "each of the regions"),
        (lambda: Composition("all"), "regions as a list"),
        (lambda: Composition([3]), "each of the regions"),
        (lambda: Composition([(0.1, 0.1, 0.5, 0.5, "x" * 201)]), "at most 200"),
        (lambda: Composition([(0.1, 0.1, 0.5, 0.5, 7)]), "a text of at most"),
        (lambda: Composition([(0.1, 0.1, 0.5, 0.5, "草地 field")]), "font has no '地', '草'"),
        (lambda: Composition(lines=[(0.5, 0.5, 0.5, 0.5)]), "no length"),
        (lambda: Composition(texts=[(0.5, 0.5, " ")]), "empty"),
        (lambda: overlays.build({"kind": "composition", "regions": [{"x": 0.1}]}), "each of the regions"),
        (lambda: overlays.build({"kind": "depth", "points": 3}), "2 to 26 points"),
        (lambda: ImageOverlay.from_image(Image.new("F", (2, 2))), "8 or 16 bits"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(OverlayError, match=message):
        make()


def test_colors_of_a_picture_are_its_own_the_most_frequent_first():
    picture = Image.new("RGB", (300, 200), "#204060")
    picture.paste("#f0c080", (0, 0, 100, 200))
    picture.paste("#10a030", (0, 0, 100, 60))
    wanted = ("#204060", "#f0c080", "#10a030")
    assert overlays.colors_of(picture, 3) == wanted
    assert set(overlays.colors_of(picture, 12)) == set(wanted)
    assert overlays.colors_of(picture.convert("RGBA"), 3) == wanted


def test_colors_of_a_photograph_stand_for_its_groups_and_are_the_same_each_time():
    centers = np.array([[200, 60, 40], [40, 80, 160], [230, 220, 190]])
    generator = np.random.default_rng(0)
    index = generator.choice(3, (120, 90), p=[0.5, 0.3, 0.2])
    pixels = (centers[index] + generator.normal(0, 8, (120, 90, 3))).clip(0, 255).astype(np.uint8)
    found = overlays.colors_of(Image.fromarray(pixels), 3)
    assert found == overlays.colors_of(Image.fromarray(pixels), 3)
    values = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in found])
    assert np.abs(values - centers).max() < 4


@pytest.mark.parametrize("count", [0, 257])
def test_colors_of_a_picture_are_some(count):
    with pytest.raises(OverlayError, match=f"1 to 256 colours .* got {count}"):
        overlays.colors_of(Image.new("RGB", (2, 2)), count)
