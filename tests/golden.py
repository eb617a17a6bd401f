"""Small stored pictures of every kind of overlay at four sizes, to compare today's drawing with.

    python tests/golden.py

makes them anew. Look at them before you commit them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from dual_process import overlays
from dual_process.overlays import ImageOverlay, Overlay

FOLDER = Path(__file__).parent / "overlays" / "golden"
SIZES = {(64, 64): 1, (512, 512): 1, (768, 1344): 2, (2048, 2048): 4}  # (height, width): stored so many times smaller
BANDS = ("#f4f1e8", "#c9d8e6", "#8fb3cf", "#d9b98a", "#8a8f5c", "#3f4a3a")
PATCH = 4  # stored pixels; what letters differ in by versions of FreeType is small within it


def notes() -> Image.Image:
    """Red notes on white, as one draws them."""
    picture = Image.new("RGB", (600, 600), "white")
    pen = ImageDraw.Draw(picture)
    pen.ellipse((60, 60, 220, 220), outline="red", width=12)
    pen.line((60, 420, 540, 360), "red", 12)
    pen.polygon([(400, 250), (520, 250), (460, 120)], fill="blue")
    return picture


EACH = {
    "palette": overlays.palette(["#6a4a82", "#e89a5c", "#7a5068", "#ffffff"]),
    "palette_left": overlays.palette(["#f2c14e", "#5b8e7d", "#2b4a5a"], side="left"),
    "horizon": overlays.horizon(0.3),
    "horizon_tilted": overlays.horizon(0.5, tilt=8),
    "line_weight": overlays.line_weight(0.03),
    "line_weight_compared": overlays.line_weight(0.04, compare=0.012),
    "depth": overlays.depth([(0.3, 0.35), (0.7, 0.75), (1.0, 0.0)]),
    "composition": overlays.composition(
        [(0.05, 0.68, 0.5, 0.27, "land"), (0.6, 0.06, 0.36, 0.24, "sun")],
        [(0.05, 0.36, 0.5, 0.36, "shore"), (0.6, 0.4, 0.6, 0.95, "mast")],
        [(0.3, 0.15, "sky")],
    ),
    "image": Overlay((ImageOverlay.from_image(notes()),)),
    "image_transparent": Overlay((ImageOverlay.from_image(notes(), "transparent", 0.5),)),
    "stack": overlays.horizon(0.6, color="#0050ff")
    + overlays.palette(["#6a4a82", "#e89a5c"], side="top")
    + overlays.depth([(0.25, 0.45), (0.75, 0.8)]),
}


def background(height: int, width: int) -> Tensor:
    """Bands from light to dark, darker on the right, [1, 3, H, W]: flat, so that files stay small."""
    colors = torch.tensor([overlays.parse_color(color) for color in BANDS])
    picture = colors[torch.arange(height) * len(BANDS) // height].T[:, :, None].repeat(1, 1, width)
    picture[:, :, width * 2 // 3 :] *= 0.4
    return picture[None]


def draw(overlay: Overlay, height: int, width: int) -> Tensor:
    """The overlay on the background, as it is stored, [3, h, w] in [0, 1]."""
    drawn = overlay.apply(background(height, width))
    return F.avg_pool2d(drawn, SIZES[height, width])[0]


def path(name: str, height: int, width: int) -> Path:
    return FOLDER / f"{name}_{width}x{height}.png"


def stored(name: str, height: int, width: int) -> Tensor:
    """[3, h, w] in [0, 1]."""
    with Image.open(path(name, height, width)) as picture:
        return pil_to_tensor(picture.convert("RGB")).float() / 255


def difference(one: Tensor, other: Tensor) -> float:
    """The largest mean difference within a patch of stored pixels."""
    return F.avg_pool2d((one - other).abs(), PATCH, ceil_mode=True).max().item()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, overlay in EACH.items():
        for size in SIZES:
            to_pil_image((draw(overlay, *size) * 255).round().byte()).save(path(name, *size), optimize=True)


if __name__ == "__main__":
    main()
