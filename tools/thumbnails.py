"""Draws the templates' thumbnails with LoRAs that the demo command has trained.

python -m dual_process demo --output runs/horizon
python -m dual_process demo --control palette --output runs/palette
python tools/thumbnails.py runs/horizon/lora.safetensors runs/palette/lora.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dual_process import demo, overlays
from dual_process.core.tensor_file import read_tensors
from dual_process.demo.controls import DEFAULT_PALETTE
from dual_process.distillation import Question

FOLDER = Path(__file__).parents[1] / "workflows"
PROMPTS = (
    "the sea under a day sky",
    "the sand under a sunset sky with a tree",
    "the grass under a night sky with a house",
    "a night sky over the sea",
)
LINE = "Is the overlaid red line aligned with the horizon of the scene?"
SIDE, GAP, LEFT, TOP = 168, 10, 12, 34  # pixels
INK, PAPER = "#f0f0f0", "#1c1c1e"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def sheet(rows: Sequence[tuple[str, Tensor]], name: str, captions: Sequence[str] = (), foot: str = "") -> None:
    """Titled rows of three pictures."""
    height = sum(TOP + SIDE + (24 if captions else 0) for _ in rows) + GAP + (26 if foot else 0)
    canvas = Image.new("RGB", (LEFT * 2 + 3 * SIDE + 2 * GAP, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = 0
    for number, (title, pictures) in enumerate(rows):
        draw.text((LEFT, y + 6), title, INK, font(20))
        y += TOP
        for column, picture in enumerate(pictures):
            x = LEFT + column * (SIDE + GAP)
            canvas.paste(to_pil_image(picture.clamp(0, 1)).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
            if captions:
                draw.text((x, y + SIDE + 2), captions[3 * number + column], INK, font(15))
        y += SIDE + (24 if captions else 0)
    if foot:
        draw.text((LEFT, y + 6), foot, "#e8b04c", font(15))
    canvas.save(FOLDER / f"{name}.jpg", quality=90)


def main(horizon: Path, palette: Path) -> None:
    """Writes all thumbnails into `workflows/`."""
    generator, critic = demo.load(PROMPTS)
    seeds = (11, 12, 14)
    base = generator.sample((0, 1, 2), seeds)
    line, strip = overlays.horizon(0.3), overlays.palette(DEFAULT_PALETTE)

    def taught(path: Path) -> Tensor:
        generator.load_lora_state_dict(read_tensors(path)[0])
        return generator.sample((0, 1, 2), seeds, lora_scale=1.0)

    moved, painted = taught(horizon), taught(palette)
    rows = [("before", line.apply(base)), ("after", line.apply(moved))]
    sheet(rows, "01_demo_teach_a_horizon")
    sheet([("before", strip.apply(base)), ("after", strip.apply(painted))], "02_demo_teach_a_palette")
    sheet([("without LoRA", base), ("with LoRA", line.apply(moved))], "03_demo_use_a_saved_lora")
    sheet(rows, "06_demo_teach_a_horizon.app", foot="As an app: a question, a line, Run.")
    for path in sorted({*FOLDER.glob("*.json")} - {*FOLDER.glob("*_demo_*.json")}):
        label = path.stem.removesuffix("_teach_a_horizon").partition("_")[2].replace("_", " ")
        sheet(rows, path.stem, foot=f"For {label}. Pictures: the demo model.")
    shown, captions = [], []
    pictures = torch.stack([moved[0], base[1], base[2]])
    for question in (Question(LINE, overlay=line), Question("Is it night?")):
        seen = pictures if question.overlay is None else question.overlay.apply(pictures)
        shown.append((question.text.replace("overlaid ", "").replace(" of the scene", ""), seen))
        captions += [f"P(Yes) {p:.2f}" for p in critic.log_likelihood(seen, [question])[:, 0].exp().tolist()]
    sheet(shown, "04_demo_score_pictures", captions)


if __name__ == "__main__":
    typer.run(main)
