"""Draws the templates' thumbnails with LoRAs that the demo models were taught.

    for control in horizon palette night line_weight depth composition; do
      python -m dual_process demo --control $control
    done
    PYTHONPATH=tools python tools/thumbnails.py output

Beside their folders, `output/demo_new_prompts/lora.safetensors` is what 21_demo_teach_for_new_prompts has saved,
`output/demo_style` what 27_demo_style_by_reference, `output/demo_favourites` what 29_demo_pick_favourites after four
rounds of a person who likes nights, `output/demo_process` what 35_demo_distill_a_process has saved.
Thumbnails whose LoRA is not there are left as they are. Those of the slider and of two controls show LoRAs that
ship with the pack; the others of the process are made without any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import typer
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from templates import LESSONS, by_process
from templates.applications import COMMONSENSE, HORIZON, RELATIVE_DEPTH, SLIDER
from templates.by_pictures import FAVOURITES, REFERENCE, STYLE_BY_REFERENCE
from templates.models import STROKES
from templates.teaching import Application
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dual_process import demo, overlays
from dual_process.core.protocols import slider_values
from dual_process.core.tensor_file import read_tensors
from dual_process.critics import load_critic
from dual_process.demo import strokes
from dual_process.demo.strokes.process import SETTINGS, StrokesThinker, load_painter
from dual_process.demo.world import IMAGE_SIZE
from dual_process.distillation import Question, Sampling, read_slider
from dual_process.generators import load_generator
from dual_process.process import paint

FOLDER = Path(__file__).parents[1] / "workflows"
RUNS = {COMMONSENSE.name: "night", RELATIVE_DEPTH.name: "depth"}  # named otherwise than the application
PROMPTS = (
    "the sea under a day sky",
    "the sand under a sunset sky with a tree",
    "the grass under a night sky with a house",
)
SILENT = ("the sea under a sky", "the sand under a sky with a tree", "the grass under a sky with a house")
SEEDS = (11, 12, 14)
LINE = HORIZON.demo.texts[0]
EXAMPLES = Path(__file__).parents[1] / "demo" / "loras" / "dual_process_demo"
LINE_LORA = "horizon_at_0.30"
SIDE, GAP, LEFT, TOP = 168, 10, 12, 34  # pixels
INK, PAPER = "#f0f0f0", "#1c1c1e"
Rows = Sequence[tuple[str, Tensor]]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def sheet(rows: Rows, name: str, captions: Sequence[str] = (), foot: str = "") -> None:
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
    print(name)


def before_and_after(application: Application, runs: Path) -> tuple[Tensor, Tensor]:
    """Pictures of the demo models without and with the LoRA of an application, [3, 3, H, W] each in [0, 1]."""
    drawn = (application, STROKES) in LESSONS.values()
    prompts = application.demo.held_out[:3] if drawn else SILENT if application is COMMONSENSE else PROMPTS
    generator, _ = (strokes.load if drawn else demo.load)(prompts)
    before = generator.sample((0, 1, 2), SEEDS)
    lora, metadata = read_tensors(lora_of(application, runs))
    generator.load_lora_state_dict(lora, json.loads(metadata["dual_process.recipe"])["lora_targets"])
    return before, generator.sample((0, 1, 2), SEEDS, lora_scale=1.0)


def lora_of(application: Application, runs: Path) -> Path:
    return runs / f"demo_{RUNS.get(application.name, application.name)}" / "lora.safetensors"


def main(runs: Path) -> None:
    """Writes the thumbnails of all LoRAs in `runs` into `workflows/`."""
    for application in {application.name: application for application, _ in LESSONS.values()}.values():
        if not lora_of(application, runs).is_file():
            continue
        before, after = before_and_after(application, runs)
        overlay = application.demo.overlay or overlays.Overlay(())
        rows = [("before", overlay.apply(before)), ("after", overlay.apply(after))]
        for name, (other, models) in LESSONS.items():
            if other is application:
                sheet(rows, name, foot=f"For {models.label}. Pictures: the demo model." if models.downloaded else "")
        if application is HORIZON:
            sheet(rows, "06_demo_teach_a_horizon.app", foot="As an app: a question, a line, Run.")
            sheet([("without LoRA", before), ("with LoRA", overlay.apply(after))], "03_demo_use_a_saved_lora")
            score(before, after)
    slider()
    two_controls()
    by_pictures(runs)
    process()
    distilled_process(runs)


def slider() -> None:
    """The slider that ships with the pack, at both ends and in the middle."""
    path = EXAMPLES / "horizon_slider.safetensors"
    parts, (_, metadata) = read_slider(path), read_tensors(path)
    ends = overlays.build(parts.overlays[0])
    assert isinstance(ends, overlays.Range)
    generator, _ = demo.load(PROMPTS)
    targets = json.loads(metadata["dual_process.recipe"])["lora_targets"]
    generator.load_lora_state_dict(parts.constant, targets, slider=parts.slider)
    rows = [
        (
            ends.describe(value),
            ends.at(value).apply(generator.sample((0, 1, 2), SEEDS, sampling=Sampling(slider=value))),
        )
        for value in slider_values(3)
    ]
    for name, (application, models) in LESSONS.items():
        if application is SLIDER:
            sheet(rows, name, foot=f"For {models.label}. Pictures: the demo model." if models.downloaded else "")
    sheet(rows, "25_demo_use_a_slider")


def two_controls() -> None:
    """The horizon and the night that ship with the pack, apart and together."""
    rows = []
    for title, names in (("a horizon", (LINE_LORA,)), ("night", ("night",)), ("both", (LINE_LORA, "night"))):
        pipeline = FluxPipeline.from_pretrained(demo.WEIGHTS / "pipeline", local_files_only=True)
        for number, name in enumerate(names):
            pipeline.load_lora_weights(EXAMPLES / f"{name}.safetensors", adapter_name=f"lora{number}")
        pipeline.set_adapters([f"lora{number}" for number in range(len(names))])
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "num_inference_steps": 1}
        generator = load_generator(pipeline, prompts=list(SILENT), device="cpu", **size)
        rows.append((title, generator.sample((0, 1, 2), SEEDS)))
    sheet(rows, "26_demo_two_controls")


def by_pictures(runs: Path) -> None:
    """The style of a reference, and four rounds of favourites."""
    generator, _ = demo.load([REFERENCE])
    reference = ("picture A", generator.sample((0,), (7,)))
    for folder, names, rows, after, prompts in (
        ("demo_style", STYLE_BY_REFERENCE, [reference], "in the style of A", PROMPTS),
        ("demo_favourites", FAVOURITES, [], "after four rounds of nights", SILENT),
    ):
        path = runs / folder / "lora.safetensors"
        if not path.is_file():
            continue
        generator, _ = demo.load(prompts)
        before = generator.sample((0, 1, 2), SEEDS)
        lora, metadata = read_tensors(path)
        generator.load_lora_state_dict(lora, json.loads(metadata["dual_process.recipe"])["lora_targets"])
        rows = [*rows, ("before", before), (after, generator.sample((0, 1, 2), SEEDS, lora_scale=1.0))]
        for name in names:
            sheet(rows, name, foot="" if "_demo_" in name else "For Flux schnell. Pictures: the demo model.")


def process() -> None:
    """Pictures of one prompt in one pass and by process, and a filmstrip of steps."""
    prompt = by_process.PROMPT
    painter, thinker = load_painter(), StrokesThinker(load_critic(strokes.WEIGHTS / "critic", device="cpu"))
    once = torch.cat([painter.draft(prompt, seed).picture for seed in SEEDS])
    painted = [paint(prompt, painter, thinker, SETTINGS, seed) for seed in SEEDS]
    rows = [("in one pass", once), ("by process", torch.cat([painting.picture for painting in painted]))]
    for name, models in by_process.MODELS.items():
        foot = f"For {models.label}. Pictures: the demo model." if models.downloaded else f"“{prompt}”"
        sheet(rows, name, foot=foot)
    steps = torch.cat([painted[0].pictures[f"step_{number:02}"] for number in range(3)])
    sheet([("one stroke after the other", steps)], "34_demo_steer_by_hand")


def distilled_process(runs: Path) -> None:
    """One pass before and after it has learnt from a picture that was painted step by step."""
    path, prompt = runs / "demo_process" / "lora.safetensors", by_process.FOUR_THINGS
    if not path.is_file():
        return
    generator, _ = strokes.load([prompt])
    before = generator.sample((0, 0, 0), SEEDS)
    lora, metadata = read_tensors(path)
    generator.load_lora_state_dict(lora, json.loads(metadata["dual_process.recipe"])["lora_targets"])
    rows = [("in one pass", before), ("after the lesson", generator.sample((0, 0, 0), SEEDS, lora_scale=1.0))]
    sheet(rows, "35_demo_distill_a_process", foot="Learnt from one picture that was painted step by step.")


def score(before: Tensor, after: Tensor) -> None:
    """Two questions about three pictures, with what the critic says."""
    _, critic = demo.load(PROMPTS)
    shown, captions = [], []
    pictures = torch.stack([after[0], before[1], before[2]])
    for question in (Question(LINE, overlay=HORIZON.demo.overlay), Question("Is it night?")):
        seen = pictures if question.overlay is None else question.overlay.apply(pictures)
        shown.append((question.text.replace("overlaid ", "").replace(" of the scene", ""), seen))
        captions += [f"P(Yes) {p:.2f}" for p in critic.log_likelihood(seen, [question])[:, 0].exp().tolist()]
    sheet(shown, "04_demo_score_pictures", captions)


if __name__ == "__main__":
    typer.run(main)
