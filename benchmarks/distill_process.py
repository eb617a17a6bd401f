"""The slow process, distilled into one pass: a LoRA learns from trajectories of the demo's second world.

    python benchmarks/distill_process.py --json

Prompts of three objects that leave the places open are seldom right in one pass: of its draft the critic inspects each
object, and what is missing or spoilt is painted anew into its column, with the noise of the draft, so that all else
stays. Such trajectories become a recipe: their results as targets for the same prompt and noise, their facts as
questions. Beside them stand prompts that one pass paints right already. What one pass makes of held-out prompts, before
and after, is read by the critic-free scene reader.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torchvision.utils import save_image

from dual_process.core.protocols import Critic, Generator
from dual_process.demo import strokes
from dual_process.demo.strokes.captions import caption, parse_prompt
from dual_process.demo.strokes.compositions import Wanted, shows, wanted_prompts
from dual_process.demo.strokes.controls import EVEN, KEPT, NOISE_SHAPE, measured, scenes_of
from dual_process.demo.strokes.controls import true_pictures as pictures_of
from dual_process.demo.strokes.process import SETTINGS, StrokesThinker, load_painter, placed, plan_of
from dual_process.demo.strokes.reader import read_scenes
from dual_process.demo.strokes.world import Words
from dual_process.distillation import Recipe, distill
from dual_process.evaluation.control import EVALUATION_SEED, LIKENESS, Pairs, sample_pairs
from dual_process.evaluation.fidelity import against_base
from dual_process.evaluation.measures import psnr
from dual_process.generators.noise import draw_noise
from dual_process.process import Canvas, Painting, Plan, Stroke, paint, result_lesson

TAUGHT = "three objects"
KNOWN = (TAUGHT, "colors", "color attribution", "two objects", "position", "single object")  # categories, to stay
HELD_OUT = ("single object", "two objects", "counting", "position", TAUGHT, "four objects")
SINGLE = HELD_OUT[0]
TRAINING_SEED, HELD_OUT_SEED = 1, 0  # of prompts
MENDED = replace(SETTINGS, whole_draft=True, budget=5, refinements=0)  # with one noise, another try is the same
WHOLE = replace(MENDED, budget=1)  # one pass, inspected
SKY = 0.25  # of the height, above all objects
POOL = 400  # prompts to choose the training prompts from
SHOWN = 16  # held-out pictures that are kept


def main(
    trajectories: Annotated[int, typer.Option(help="Prompts of three objects that the process paints.")] = 128,
    noises: Annotated[int, typer.Option(help="Of each of them.")] = 2,
    known: Annotated[int, typer.Option(help="Prompts that one pass paints right, of each category.")] = 24,
    each: Annotated[int, typer.Option(help="Held-out prompts of a category.")] = 40,
    pictures: Annotated[int, typer.Option(help="Of each held-out prompt.")] = 2,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 240,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW; it falls to 0 as a cosine.")] = 4e-4,
    rank: Annotated[int, typer.Option(help="Of the LoRA.")] = 32,
    target_weight: Annotated[float, typer.Option(help="Of the targets; 0: questions alone.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the LoRA and held-out pictures here.")] = None,
) -> None:
    """Paints, distils, and prints what one pass makes of held-out prompts before and after."""
    held_out = [w for category in HELD_OUT for w in wanted_prompts(category, each, HELD_OUT_SEED)]
    _, critic = strokes.load([held_out[0].prompt])
    with Progress(console=Console(stderr=True)) as progress:
        started = time.perf_counter()
        paintings = list(progress.track(painted(trajectories, noises, known, {w.prompt for w in held_out}, critic)))
        painting_seconds = time.perf_counter() - started
        recipe = recipe_of(paintings, target_weight, steps, learning_rate, rank, seed)
        generator, _ = strokes.load([*recipe.prompts, *(w.prompt for w in held_out)])
        before = one_pass(generator, held_out, pictures, 0.0)
        task = progress.add_task("training steps", total=steps)
        result = distill(generator, critic, recipe, on_step=lambda *_: progress.advance(task))
        after = one_pass(generator, held_out, pictures, 1.0)
    figures = {
        "paintings": len(paintings),
        "targets": len(recipe.targets),
        "questions": len(recipe.questions),
        "painting_seconds": painting_seconds,
        "training_seconds": sum(report.seconds for report in result.history),
        "last_loss": result.history[-1].loss,
        "penalties": [result.history[0].penalties, result.history[-1].penalties],
        "settings": {"steps": steps, "learning_rate": learning_rate, "rank": rank, "target_weight": target_weight},
        **judged(held_out, before, after, generator, pictures),
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        result.save(output / "one_pass.safetensors", title="The process of the second demo world in one pass")
        rows = [number * pictures for number, w in enumerate(held_out) if w.category == TAUGHT][:SHOWN]
        save_image(torch.cat([before[rows], after[rows]]), output / "before_after.png", nrow=len(rows))
    print(json.dumps(figures, indent=2) if as_json else markdown(figures))


def painted(trajectories: int, noises: int, known: int, held_out: set[str], critic: Critic) -> Iterator[Painting]:
    """Compositions by process, then in one pass what one pass can; none of the held-out prompts."""
    painter, thinker, seeds = OneNoise(), StrokesThinker(critic), count()
    for prompt in islice(training_prompts(TAUGHT, False, held_out), trajectories):
        for _ in range(noises):
            yield paint(by_columns(prompt), painter, thinker, MENDED, seed=next(seeds))
    for category in KNOWN:
        for prompt in islice(training_prompts(category, category == TAUGHT, held_out), known):
            plan = replace(plan_of(prompt, as_said=True), description=prompt)
            yield paint(plan, painter, thinker, WHOLE, seed=next(seeds))


class OneNoise:
    """Paints regions anew from the noise of the draft, by which a model of one step paints the same field."""

    keeps_outside = True

    def __init__(self) -> None:
        self._painter = load_painter(by_regions=True)
        self.info, self._seed = self._painter.info, 0

    def draft(self, prompt: str, seed: int) -> Canvas:
        self._seed = seed
        return self._painter.draft(prompt, seed)

    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        return self._painter.stroke(canvas, stroke, self._seed)


def by_columns(prompt: str) -> Plan:
    """The prompt itself is drafted; an object that is not there is painted into its column, from left to right."""
    plan, words = plan_of(prompt, as_said=True), parse_prompt(prompt)
    mended = []
    for stroke, thing in zip(plan.strokes, placed(words).things, strict=True):
        assert stroke.region is not None
        column = replace(stroke.region, top=SKY, bottom=1.0)
        mended.append(replace(stroke, local_prompt=caption(Words((thing,), words.time)), region=column))
    return replace(plan, description=prompt, strokes=tuple(mended))


def training_prompts(category: str, with_places: bool, held_out: set[str]) -> Iterator[str]:
    """Those that say places, or those that say none, each once."""
    for wanted in wanted_prompts(category, POOL, TRAINING_SEED):
        placed = any(thing.place for thing in wanted.words.things)
        if placed == with_places and wanted.prompt not in held_out:
            yield wanted.prompt


def recipe_of(
    paintings: Sequence[Painting], target_weight: float, steps: int, learning_rate: float, rank: int, seed: int
) -> Recipe:
    """Results as targets, facts as questions."""
    lesson = result_lesson(paintings, target_weight)
    if not target_weight:
        lesson = {name: value for name, value in lesson.items() if name not in ("targets", "penalties")}
    settings = {"batch_size": 4, "gradient_accumulation": 2, "lr_schedule": "cosine", "adam_beta2": 0.99}
    return Recipe.from_dict(
        {
            **lesson,
            **settings,
            "train_steps": steps,
            "learning_rate": learning_rate,
            "rank": rank,
            "lora_alpha": 2.0 * rank,
            "num_inference_steps": 1,
            "seed": seed,
        }
    )


def held_out_pairs(held_out: Sequence[Wanted], generator: Generator, pictures: int) -> Pairs:
    """Every held-out prompt with as many noises."""
    first = generator.num_prompts - len(held_out)
    numbers = [number for number in range(len(held_out)) for _ in range(pictures)]
    seeds = tuple(EVALUATION_SEED + number for number in range(len(numbers)))
    prompts = tuple(held_out[number].prompt for number in numbers)
    return Pairs(tuple(first + number for number in numbers), prompts, seeds, draw_noise(seeds, *NOISE_SHAPE))


def one_pass(generator: Generator, held_out: Sequence[Wanted], pictures: int, lora_scale: float) -> Tensor:
    return sample_pairs(generator, held_out_pairs(held_out, generator, pictures), lora_scale)


def judged(
    held_out: Sequence[Wanted], before: Tensor, after: Tensor, generator: Generator, pictures: int
) -> dict[str, Any]:
    """Shares of right pictures by category, and what single objects lost by the world's own guards."""
    pairs = held_out_pairs(held_out, generator, pictures)
    wanted = [w for w in held_out for _ in range(pictures)]
    right = [shows(read_scenes(images), wanted) for images in (before, after)]
    shares = {
        category: [
            statistics.fmean(r for r, w in zip(rights, wanted, strict=True) if w.category == category)
            for rights in right
        ]
        for category in HELD_OUT
    }
    rows = [number for number, w in enumerate(wanted) if w.category == SINGLE]
    single = Pairs(
        *(tuple(values[row] for row in rows) for values in (pairs.indices, pairs.prompts, pairs.seeds)),
        pairs.noise[rows],
    )
    base = before[rows]
    kept = [fidelity(images[rows], base, single) for images in (before, after)]
    lost = [g.lost for g in (*KEPT, EVEN) if g.measured(kept[0]) and not g.holds(*kept)]
    return {"right": shares, "single_objects": kept, "lost": lost}


def fidelity(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, float]:
    """How whole pictures of B pairs are; the base model's own are the scenes that their noises name."""
    own, (_, kept) = pictures_of(scenes_of(pairs)), measured(images, pairs)
    return {
        **kept,
        LIKENESS: float(psnr(images, own.images).mean()),
        **against_base(images, base, own, pairs.prompts),
    }


def markdown(figures: dict[str, Any]) -> str:
    """A line a category, and what single objects lost."""
    lines = ["| held-out prompts, one pass | before | after |", "|---|---|---|"]
    lines += [f"| {category} | {one:.3f} | {two:.3f} |" for category, (one, two) in figures["right"].items()]
    before, after = figures["single_objects"]
    lines += [f"| single object: {name} | {before[name]:.3f} | {after[name]:.3f} |" for name in before]
    rest = {name: value for name, value in figures.items() if name not in ("right", "single_objects")}
    return "\n".join([*lines, "", json.dumps(rest, indent=2)])


if __name__ == "__main__":
    typer.run(main)
