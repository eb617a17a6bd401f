"""A generator learns to read visual prompts: overlays that it has not seen, shown to it as its reference.

    python benchmarks/read_overlays.py --control line_weight --json

Beyond both papers: there the overlay is shown to the critic alone, and one LoRA holds one control. Here the second demo
world's generator, which has learnt to change the picture beside its prompt, adds an object to an empty field on which
the overlay itself is drawn, another one for every prompt, and one LoRA is trained by the VQA loss to obey it, and to
leave the instruction out of the picture. Held out are prompts, fields and targets; what pictures show is read by the
critic-free scene reader. Each is also measured against another one's overlay: who does not read comes as near to that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torchvision.utils import save_image

from dual_process import overlays
from dual_process.core.picture import Picture
from dual_process.demo import strokes
from dual_process.demo.strokes import PRESET
from dual_process.demo.strokes.captions import PLACES, parse_prompt, thing_name
from dual_process.demo.strokes.controls import (
    BAR,
    NOISE_SHAPE,
    RED,
    as_prompted,
    color_error,
    keep_questions,
    layout_iou,
    line_weight_error,
    region_at,
)
from dual_process.demo.strokes.process import slot
from dual_process.demo.strokes.reader import Reading, read_scenes
from dual_process.demo.strokes.world import (
    COLORS,
    IMAGE_SIZE,
    INK,
    KINDS,
    TIMES,
    Thing,
    Words,
    build_scenes,
    random_uniforms,
    render,
    srgb,
)
from dual_process.distillation import PRESETS, Question, Recipe, Target, distill, guard_questions, overlay_questions
from dual_process.evaluation.control import EVALUATION_SEED, Pairs, sample_pairs
from dual_process.generators import DiffusersGenerator
from dual_process.generators.noise import draw_noise
from dual_process.process import Region
from dual_process.process.painting import outside

SHOWN = 12  # held-out pictures that are kept
TRAINED_THINGS = 8  # of twelve; the others are held out
ROOM = 5 / IMAGE_SIZE  # between an object and the region that is drawn around it
INKED = 0.25  # distance in sRGB to the ink within which a pixel belongs to an outline
THICKER = 3  # pixels by which an outline may grow to each side
MARGIN = 4  # pixels around an object that count as its own


@dataclass(frozen=True)
class Reads:
    """A kind of overlay with a target that can be anywhere.

    Attributes:
        draw: a random target.
        overlay: that shows it.
        at_places: whether prompts say where the object is to stand.
        place: where the object of a target and a prompt may be.
        free: what of its own picture there [3, 128, 128] may change, [128, 128], bool.
        error: how far a picture of a reading [1] is from a target.
        unit: of the error.
    """

    draw: Callable[[np.random.Generator], Any]
    overlay: Callable[[Any], overlays.Overlay]
    at_places: bool
    place: Callable[[Any, str], Region]
    free: Callable[[Tensor], Tensor]
    error: Callable[[Reading, Any], Tensor]
    unit: str


def around(region: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A region that an object fills, with room for its outline: x, y, width and height in fractions."""
    x, y, width, height = region
    left, top = max(0.0, x - ROOM), max(0.0, y - ROOM)
    return left, top, min(1.0, x + width + ROOM) - left, min(1.0, y + height + ROOM) - top


def as_region(box: tuple[float, float, float, float]) -> Region:
    """Of x, y, width and height in fractions."""
    x, y, width, height = box
    return Region(x, y, min(1.0, x + width), min(1.0, y + height))


def near_outlines(picture: Tensor) -> Tensor:
    """Pixels of a picture [3, H, W] where outlines are or could be, if they were thicker, [H, W], bool."""
    ink = (picture - srgb([INK])[0][:, None, None]).norm(dim=0) < INKED
    return torch.nn.functional.max_pool2d(ink[None].float(), 2 * THICKER + 1, 1, THICKER)[0] > 0


CONTROLS = {
    "line_weight": Reads(
        draw=lambda random: float(random.uniform(1, 5)),
        overlay=lambda thickness: overlays.line_weight(thickness / IMAGE_SIZE, y=BAR),
        at_places=True,
        place=lambda thickness, prompt: slot(parse_prompt(prompt).things[0].place),
        free=near_outlines,
        error=line_weight_error,
        unit="pixels",
    ),
    "composition": Reads(
        draw=lambda random: region_at(float(random.uniform(16, 112)), float(random.uniform(0, 1))),
        overlay=lambda region: overlays.composition(regions=[around(region)]),
        at_places=False,
        place=lambda region, prompt: as_region(around(region)),
        free=lambda picture: torch.ones(picture.shape[1:], dtype=torch.bool),
        error=lambda reading, region: 1 - layout_iou(reading, [region]),
        unit="1 - IoU",
    ),
}


def main(
    control: Annotated[str, typer.Option(help=f"What overlays show: {' or '.join(CONTROLS)}.")] = "line_weight",
    trained: Annotated[int, typer.Option(help="Pairs of a prompt and an overlay that are trained on.")] = 192,
    held_out: Annotated[int, typer.Option(help="Pairs that are not.")] = 48,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 450,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW; it falls to 0 as a cosine.")] = 4e-4,
    target_weight: Annotated[float, typer.Option(help="Of the field, and of what is not an outline.")] = 240.0,
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 16,
    lora_targets: Annotated[str, typer.Option(help="Layers that the LoRA changes.")] = "attention + feed-forward",
    watch_every: Annotated[int, typer.Option(help="Measure every so many steps, too; 0: never.")] = 0,
    seed: Annotated[int, typer.Option(help="Of training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the LoRA and held-out pictures here.")] = None,
) -> None:
    """Trains on some overlays, and prints how near pictures come to others, before and after."""
    reads, random = CONTROLS[control], np.random.default_rng(seed)
    prompts = [*drawn_prompts(reads, trained, False, random), *drawn_prompts(reads, held_out, True, random)]
    fields = drawn_fields(len(prompts), random)
    targets = [reads.draw(random) for _ in prompts]
    shown = [reads.overlay(target) for target in targets]
    references = [overlay.apply(field[None]) for overlay, field in zip(shown, fields, strict=True)]
    generator, critic = strokes.load(prompts)
    places = [reads.place(target, prompt) for target, prompt in zip(targets, prompts, strict=True)]
    own = own_pictures(generator, fields)
    generator.show_references([generator.encode(reference) for reference in references])
    kept = field_targets(reads, places[:trained], fields[:trained], own[:trained])
    recipe = recipe_of(prompts[:trained], shown[:trained], kept, target_weight)
    settings = {"train_steps": steps, "learning_rate": learning_rate, "rank": rank, "lora_targets": lora_targets}
    recipe = replace(recipe, seed=seed, **settings)
    held = Held(reads, prompts, targets, fields, trained)
    before = held.figures(generator, 0.0)
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        task = progress.add_task("training steps", total=steps)

        def watch(run: Any, report: Any, preview: Any) -> None:
            progress.advance(task)
            if watch_every and report.step % watch_every == 0:
                progress.console.print(report.step, held.figures(run.generator, 1.0))

        result = distill(generator, critic, recipe, observers=[watch])
    after = held.figures(generator, 1.0)
    figures = {
        "control": control,
        "unit": reads.unit,
        "before": before,
        "after": after,
        "p_answer": [np.nanmean(report.p_answer[:trained]) for report in (result.history[0], result.history[-1])],
        "training_seconds": sum(report.seconds for report in result.history),
        "settings": {**settings, "target_weight": target_weight},
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        result.save(output / f"reads_{control}.safetensors", title=f"Reads overlays: {control}")
        rows = [*references[trained:][:SHOWN], *(held.pictures(generator, scale)[:SHOWN] for scale in (0.0, 1.0))]
        save_image(torch.cat(rows), output / f"reads_{control}.png", nrow=SHOWN)
    print(json.dumps(figures, indent=2) if as_json else markdown(figures))


def drawn_prompts(reads: Reads, count: int, held_out: bool, random: np.random.Generator) -> list[str]:
    """Instructions to add one of the trained things, or of the others."""
    things = [Thing(kind, color) for kind in KINDS for color in COLORS]
    things = [things[i] for i in np.random.default_rng(0).permutation(len(things))]
    things = things[TRAINED_THINGS:] if held_out else things[:TRAINED_THINGS]
    found = []
    for _ in range(count):
        thing = things[random.integers(len(things))]
        place = PLACES[random.integers(len(PLACES))] if reads.at_places else None
        found.append(f"add {thing_name(replace(thing, place=place))}")
    return found


def drawn_fields(count: int, random: np.random.Generator) -> Tensor:
    """Empty fields, [count, 3, 128, 128]."""
    words = [Words((), TIMES[random.integers(3)]) for _ in range(count)]
    return render(
        build_scenes(words, random_uniforms(count, torch.Generator().manual_seed(int(random.integers(2**31)))))
    )


def own_pictures(generator: DiffusersGenerator, fields: Tensor) -> Tensor:
    """What the generator makes of each prompt beside its field alone, [count, 3, 128, 128]; the field is shown then."""
    generator.show_references([generator.encode(field[None]) for field in fields])
    return sample_pairs(generator, pairs_of(generator.prompts, 0), 0.0)


def pairs_of(prompts: Sequence[str], first: int) -> Pairs:
    """Each of the prompts from the first one on with a noise of its own."""
    numbers = tuple(range(first, len(prompts)))
    seeds = tuple(EVALUATION_SEED + number for number in numbers)
    return Pairs(numbers, tuple(prompts[first:]), seeds, draw_noise(seeds, *NOISE_SHAPE))


def field_targets(reads: Reads, places: Sequence[Region], fields: Tensor, own: Tensor) -> tuple[Target, ...]:
    """Beside an object's place the field stays, within it the generator's own picture where that is not free."""
    targets = []
    for number, (place, field, picture) in enumerate(zip(places, fields, own, strict=True)):
        beside = outside(place, *field.shape[1:])
        image, kept = torch.where(beside, field, picture), beside | ~reads.free(picture)
        target = Picture.from_tensor(image), Picture.from_tensor(kept[None].float())
        targets.append(Target(*target, (number,), (EVALUATION_SEED + number,)))
    return tuple(targets)


def recipe_of(
    prompts: Sequence[str], shown: Sequence[overlays.Overlay], targets: tuple[Target, ...], target_weight: float
) -> Recipe:
    """Each prompt's own overlay is asked about, and each has a target."""
    asked = [
        replace(question, prompts=(number,))
        for number, overlay in enumerate(shown)
        for question in (*overlay_questions(overlay), *guard_questions(overlay))
    ]
    return Recipe(
        prompts=tuple(prompts),
        questions=(*merged(asked), *keep_questions(prompts)),
        targets=targets,
        **{
            **PRESETS[PRESET].recipe,
            "penalties": {"range": 1.0, "targets": target_weight},
            "num_inference_steps": 1,
        },
    )


def merged(questions: Sequence[Question]) -> list[Question]:
    """Questions without an overlay that are asked about several prompts, once."""
    found: dict[tuple[Any, str], Question] = {}
    for question in questions:
        key = (question.overlay, question.text)
        have = found.get(key)
        found[key] = question if have is None else replace(have, prompts=(*have.prompts, *question.prompts))
    return list(found.values())


@dataclass(frozen=True)
class Held:
    """Held-out pairs of a prompt and a target, each with a noise of its own."""

    reads: Reads
    prompts: Sequence[str]
    targets: Sequence[Any]
    fields: Tensor
    first: int

    @property
    def pairs(self) -> Pairs:
        return pairs_of(self.prompts, self.first)

    def pictures(self, generator: DiffusersGenerator, lora_scale: float) -> Tensor:
        return sample_pairs(generator, self.pairs, lora_scale)

    def figures(self, generator: DiffusersGenerator, lora_scale: float) -> dict[str, float]:
        pairs, images = self.pairs, self.pictures(generator, lora_scale)
        reading, targets = read_scenes(images), self.targets[self.first :]
        return {
            "error": self._error(images, targets),
            "error to another's overlay": self._error(images, [*targets[1:], targets[0]]),
            "as_prompted": float(as_prompted(reading, pairs.prompts).float().mean()),
            "color_error": color_error(reading),
            "field_psnr": float(beside_objects(images, self.fields[self.first :], reading).mean()),
            "red_share": float((images[:, 0] - images[:, 1:].amax(dim=1) > RED).float().mean()),
        }

    def _error(self, images: Tensor, targets: Sequence[Any]) -> float:
        errors = [
            self.reads.error(read_scenes(image[None]), target) for image, target in zip(images, targets, strict=True)
        ]
        return float(torch.cat(errors).mean())


def beside_objects(images: Tensor, fields: Tensor, reading: Reading) -> Tensor:
    """PSNR in dB of pictures to their fields, where no object stands, [B]."""
    ys, xs = torch.meshgrid(torch.arange(IMAGE_SIZE) + 0.5, torch.arange(IMAGE_SIZE) + 0.5, indexing="ij")
    found = []
    for image, field, boxes in zip(images, fields, reading.boxes(), strict=True):
        beside = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
        for left, top, right, bottom in boxes.nan_to_num(-1e9).tolist():
            beside &= (xs < left - MARGIN) | (xs > right + MARGIN) | (ys < top - MARGIN) | (ys > bottom + MARGIN)
        found.append(-10 * (image - field)[:, beside].square().mean().clamp(min=1e-9).log10())
    return torch.stack(found)


def markdown(figures: dict[str, Any]) -> str:
    lines = [f"| held-out {figures['control']}, {figures['unit']} | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {value:.3f} | {figures['after'][name]:.3f} |" for name, value in figures["before"].items()]
    rest = {name: value for name, value in figures.items() if name not in ("before", "after")}
    return "\n".join([*lines, "", json.dumps(rest, indent=2)])


if __name__ == "__main__":
    typer.run(main)
