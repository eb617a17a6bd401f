"""Overlays against Pillow and against numbers computed by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from dual_process import overlays
from dual_process.distillation import OverlayError
from dual_process.overlays import HorizonLine, ImageOverlay, Overlay, PaletteStrip, composite

BACKGROUND = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))


def to_pil(image):
    return Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())


def to_tensor(image):
    return pil_to_tensor(image.convert("RGB")).float() / 255


def test_compositing_equals_pillow():
    rgba = (torch.rand(4, 24, 40, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    below = (BACKGROUND[:1] * 255).round() / 255
    wanted = Image.alpha_composite(to_pil(below[0]).convert("RGBA"), Image.fromarray(_bytes(rgba), "RGBA"))
    assert (composite(below, rgba)[0] - to_tensor(wanted)).abs().max() <= 1.01 / 255


def _bytes(rgba):
    return (rgba.permute(1, 2, 0) * 255).round().byte().numpy()


def test_the_gradient_passes_what_the_overlay_leaves_open():
    rgba = torch.rand(4, 24, 40, generator=torch.Generator().manual_seed(1))
    image = BACKGROUND.clone().requires_grad_()
    composite(image, rgba).sum().backward()
    assert torch.allclose(image.grad, (1 - rgba[3]).expand_as(image), atol=1e-6)


@pytest.mark.parametrize(
    ("height", "position", "thickness", "rows"),
    [
        (100, 0.3, 0.02, {29: 1.0, 30: 1.0}),
        (100, 0.305, 0.02, {29: 0.5, 30: 1.0, 31: 0.5}),
        (112, 0.5, 0.02, {54: 0.12, 55: 1.0, 56: 1.0, 57: 0.12}),
        (10, 0.55, 0.001, {5: 1.0}),  # never thinner than a pixel
        (100, 0.0, 0.04, {0: 1.0, 1: 1.0}),
    ],
)
def test_the_line_covers_its_rows(height, position, thickness, rows):
    rgba = HorizonLine(position, thickness, "#00ff00").draw(height, 7)
    wanted = torch.zeros(height)
    for row, alpha in rows.items():
        wanted[row] = alpha
    assert rgba.shape == (4, height, 7)
    assert torch.allclose(rgba[3], wanted[:, None].expand(height, 7), atol=1e-4)
    assert torch.equal(rgba[:3, 0, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_the_strip_equals_pillows():
    colors = ["#102030", "red", "#ffffff"]
    picture = to_pil(BACKGROUND[0])
    draw = ImageDraw.Draw(picture)
    for index, color in enumerate(colors):  # 40 / 3 pixels each: 14, 13, 13
        draw.rectangle([[0, 14, 27][index], 18, [13, 26, 39][index], 23], fill=color)
    ours = overlays.palette(colors, height=0.25).apply(BACKGROUND[:1])[0]
    assert (ours - to_tensor(picture)).abs().max() <= 0.51 / 255


def disc(mode="RGB", size=(160, 96)):
    """An antialiased black disc at (50, 40) of radius 20 on white."""
    big = Image.new("RGB", (size[0] * 8, size[1] * 8), "white")
    ImageDraw.Draw(big).ellipse([240, 160, 560, 480], fill="black")
    return big.resize(size, Image.Resampling.BOX).convert(mode)


def test_solid_white_is_transparent_and_edges_are_clean():
    green = torch.tensor([0.0, 0.8, 0.0])[None, :, None, None].expand(1, 3, 96, 160)
    image = Overlay((ImageOverlay.from_image(disc()),)).apply(green)[0]
    assert torch.allclose(image[:, 0, 0], green[0, :, 0, 0], atol=1e-5)
    assert image[:, 40, 50].max() < 1e-5
    # Every pixel lies between green and black: no white fringe.
    assert image[[0, 2]].max() < 0.02
    assert image[1].max() <= 0.8 + 1e-4
    shares = 1 - image[1] / 0.8
    truth = 1 - to_tensor(disc())[0]
    assert (shares - truth).abs().max() < 0.02
    assert shares.sum() == pytest.approx(np.pi * 20**2, rel=0.01)


def test_solid_keeps_a_coloured_drawing():
    picture = Image.new("RGB", (20, 10), "white")
    ImageDraw.Draw(picture).rectangle([5, 2, 14, 7], fill="#c04020")
    image = Overlay((ImageOverlay.from_image(picture),)).apply(torch.zeros(1, 3, 10, 20))[0]
    assert torch.allclose(image[:, 5, 10], torch.tensor([192, 64, 32]) / 255, atol=1e-5)
    assert image[:, 0, 0].max() < 1e-5


def test_transparent_blends_at_its_opacity():
    layer = ImageOverlay.from_image(Image.new("RGB", (40, 24), "#ff8000"), mode="transparent", opacity=0.25)
    wanted = 0.75 * BACKGROUND + 0.25 * torch.tensor([1.0, 128 / 255, 0.0])[:, None, None]
    assert torch.allclose(Overlay((layer,)).apply(BACKGROUND), wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["solid", "transparent"])
def test_the_pictures_own_alpha_counts(mode):
    picture = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    layer = ImageOverlay.from_image(picture, mode=mode, opacity=1.0)
    assert torch.allclose(Overlay((layer,)).apply(BACKGROUND), BACKGROUND, atol=1e-6)


def test_pictures_are_upright_on_wide_images():
    picture = Image.new("RGB", (8, 4), "white")
    picture.paste("black", [0, 0, 8, 2])  # the upper half
    layer = ImageOverlay.from_image(picture, mode="transparent", opacity=1.0)
    image = Overlay((layer,)).apply(torch.full((1, 3, 20, 60), 0.5))[0]
    assert image.shape == (3, 20, 60)
    assert image[:, :7].max() < 0.01
    assert image[:, -7:].min() > 0.99


def test_photographs_are_upright(tmp_path):
    picture = Image.new("RGB", (4, 8), "white")
    picture.paste("black", [0, 0, 2, 8])  # black on the left; shown turned by a quarter, black is above
    exif = picture.getexif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "p.png", exif=exif)
    layer = ImageOverlay.from_file(tmp_path / "p.png", mode="transparent", opacity=1.0)
    image = Overlay((layer,)).apply(torch.full((1, 3, 20, 60), 0.5))[0]
    assert image[:, :7].max() < 0.01
    assert image[:, -7:].min() > 0.99


def test_large_pictures_are_scaled_down_as_they_are_embedded(tmp_path):
    wide = Image.new("RGB", (4096, 1024), "white")
    wide.paste("black", [0, 0, 2048, 1024])
    wide.save(tmp_path / "wide.png")
    for layer in (ImageOverlay.from_image(wide), ImageOverlay.from_file(tmp_path / "wide.png")):
        small = Image.open(io.BytesIO(layer.png))
        assert (small.format, small.size) == ("PNG", (2048, 512))
        assert [small.getpixel((x, 256)) for x in (0, 1015, 1032, 2047)] == [(0, 0, 0, 255)] * 2 + [(255,) * 4] * 2
    assert Image.open(io.BytesIO(ImageOverlay.from_image(Image.new("RGB", (1, 5000))).png)).size == (1, 2048)


def test_hidden_colours_do_not_bleed_as_a_picture_is_scaled_down():
    picture = Image.new("RGBA", (4096, 64), (0, 255, 0, 0))  # unseen green beside opaque red
    picture.paste((255, 0, 0, 255), [0, 0, 2047, 64])
    pixels = np.asarray(Image.open(io.BytesIO(ImageOverlay.from_image(picture).png)))
    seen = pixels[pixels[..., 3] > 0]
    assert set(np.unique(seen[:, 3])) - {0, 255}  # the edge falls within a pixel
    assert seen[:, 0].min() >= 250
    assert seen[:, 1].max() == 0


def test_pictures_that_are_small_enough_and_png_bytes_stay_as_they_are():
    picture = disc("RGBA", (160, 2048))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    assert ImageOverlay.from_image(picture).png == buffer.getvalue()
    large = io.BytesIO()
    Image.new("L", (3000, 2)).save(large, format="PNG")
    assert ImageOverlay(large.getvalue()).png == large.getvalue()
    assert overlays.build(Overlay((ImageOverlay(large.getvalue()),)).to_dict()).layers[0].png == large.getvalue()


def test_later_layers_lie_on_top():
    red, blue = overlays.palette(["red"], height=1.0), overlays.palette(["blue"], height=1.0)
    assert (red + blue).apply(BACKGROUND)[0, :, 0, 0].tolist() == [0, 0, 1]
    assert (blue + red).apply(BACKGROUND)[0, :, 0, 0].tolist() == [1, 0, 0]


def test_plain_data_builds_the_same_overlay():
    stack = overlays.horizon(0.3, 0.05, "blue") + Overlay((ImageOverlay.from_image(disc(), "transparent", 0.3),))
    assert overlays.build(json.loads(json.dumps(stack.to_dict()))) == stack
    assert overlays.build({"kind": "horizon", "position": 0.3}) == overlays.horizon(0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizonLine(1.2), "position"),
        (lambda: HorizonLine("middle"), "position"),
        (lambda: HorizonLine(0.5, thickness=0.0), "thickness"),
        (lambda: HorizonLine(0.5, color="reddish"), "reddish"),
        (lambda: PaletteStrip(()), "at least one colour"),
        (lambda: PaletteStrip("red"), "a list"),
        (lambda: overlays.palette("red"), "a list"),
        (lambda: PaletteStrip(3), "a list"),
        (lambda: HorizonLine(float("nan")), "position"),
        (lambda: ImageOverlay(ImageOverlay.from_image(disc()).png[:200]), "Pillow can read"),
        (lambda: PaletteStrip(("red", 3)), "colour"),
        (lambda: PaletteStrip(("#ff000080",)), "opaque"),
        (lambda: PaletteStrip(("red",), height=2.0), "height"),
        (lambda: ImageOverlay(b"no picture"), "Pillow can read"),
        (lambda: ImageOverlay.from_image(disc(), mode="blend"), "'solid' or 'transparent'"),
        (lambda: ImageOverlay.from_image(disc(), opacity=-1), "opacity"),
        (lambda: ImageOverlay.from_file("none.png"), r"none\.png"),
        (lambda: overlays.build([]), "at least one overlay layer"),
        (lambda: overlays.build("horizon"), "a mapping or a list of mappings, got 'horizon'"),
        (lambda: overlays.build(None), "a mapping or a list of mappings, got None"),
        (lambda: overlays.build([3]), r"a mapping or a list of mappings, got \[3\]"),
        (lambda: overlays.build({"kind": ["horizon"]}), "an overlay kind out of"),
        (lambda: overlays.build({"kind": "palette", "colors": 3}), "a list"),
        (lambda: overlays.build({"kind": "image", "png": 3}), "base64"),
        (lambda: overlays.build({"kind": "sunset"}), "sunset"),
        (lambda: overlays.build({"position": 0.3}), "kind"),
        (lambda: overlays.build({"kind": "horizon"}), "position"),
        (lambda: overlays.build({"kind": "horizon", "position": 0.3, "angle": 3}), "angle"),
        (lambda: overlays.build({"kind": "image", "png": "§"}), "base64"),
        (lambda: overlays.horizon(0.3).apply(torch.zeros(3, 8, 8)), r"\[3, 8, 8\]"),
        (lambda: overlays.horizon(0.3).apply(torch.zeros(1, 4, 8, 8)), r"\[1, 4, 8, 8\]"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(OverlayError, match=message):
        make()
