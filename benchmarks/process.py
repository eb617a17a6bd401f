"""Pictures made stroke by stroke against one pass, in the demo's second world, scored by a critic-free scene reader.

    python benchmarks/process.py --json

GenEval's six categories and compositions of three and four objects, 40 prompts each: a single pass and the process with
every seed; on the compositions, with the first seed, what else the same cost buys, and the process without its parts.
Of the critic, on the first seed's pictures: how often it is right about those on the way and the next step; and, where
it has learnt that, how often its plans and its answers about conflicts are.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from dual_process.demo import strokes
from dual_process.demo.strokes.captions import PLACES, parse_prompt
from dual_process.demo.strokes.compositions import (
    CATEGORIES,
    COMPOSITIONS,
    EACH,
    Wanted,
    shows,
    things_there,
    wanted_prompts,
)
from dual_process.demo.strokes.process import (
    SETTINGS,
    OracleThinker,
    StrokesThinker,
    TaughtThinker,
    ask_next,
    load_painter,
    load_process_critic,
    plan_of,
    planned,
    truths,
)
from dual_process.demo.strokes.reader import read_scenes, same_scene
from dual_process.demo.strokes.training.critic_data import YES_NO, make_lesson
from dual_process.demo.strokes.training.exercises import next_step
from dual_process.demo.strokes.training.pictures import make_pool
from dual_process.demo.strokes.training.process import described, drawn_step
from dual_process.demo.strokes.training.words import random_prompt
from dual_process.demo.strokes.world import Scenes, build_scenes, random_uniforms, render
from dual_process.distillation import Question
from dual_process.painters.diffusers import FluxPainter
from dual_process.process import Painting, Plan, Settings, Thinker, paint
from dual_process.process.baselines import best_of_n, optimise_latent
from dual_process.process.files import save_painting
from dual_process.process.inspecting import HOLDS
from dual_process.process.painting import DONE, kept_psnr

LATENT_STEPS, LATENT_RATE = 20, 0.1  # of the baseline that moves latents
SCENES = 400  # that the reader is tested on
CONFLICTS = 4  # instructions that the critic is asked about, a prompt
EXERCISED, LESSONS = 128, 12  # pictures and batches of the critic's first lessons
TOPICS = {"line weight": "line weight", "depth": "Point", "composition": "red"}  # and what is no other is a fact
PROCESS, SINGLE = "process", "single pass"
Make = Callable[[Wanted, int], tuple[Tensor, int]]  # prompt and seed → picture [1, 3, 128, 128], passes


class Which(str, Enum):
    """The critic that inspects."""

    controls = "controls"
    process = "process"


@dataclass
class Row:
    """What one way of making pictures reached on one category with one seed."""

    way: str
    category: str
    seed: int
    right: float  # share of pictures
    passes: float  # of the painter, a picture
    seconds: float  # a picture


def main(
    each: Annotated[int, typer.Option(help="Prompts of a category.")] = EACH,
    seeds: Annotated[int, typer.Option(help="Seeds of pictures.")] = 3,
    critic: Annotated[
        Which, typer.Option(help="The critic that ships for the controls, or the one for the process.")
    ] = Which.controls,
    critic_only: Annotated[
        bool, typer.Option("--critic-only", help="Measure the critic alone, on the first seed's pictures.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else Markdown tables.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Keep the first seed's trajectories of compositions here.")
    ] = None,
) -> None:
    """Paints every prompt in every way and prints the shares of pictures that show what was asked for."""
    bench = Bench(each, output, critic)
    if critic_only:
        with Progress(console=Console(stderr=True)) as progress:
            for category in progress.track(CATEGORIES, description="process"):
                bench.process(category, 0)
        print(json.dumps({**bench.critic_figures(), "old lessons": bench.exercises()}, indent=2))
        return
    pictures, scenes = seen_scenes(bench.painter)
    figures: dict[str, Any] = {"reader_right": float(same_scene(read_scenes(pictures), scenes).float().mean())}
    rows: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress:
        for category, seed in progress.track(
            [(category, seed) for category in CATEGORIES for seed in range(seeds)],
            description="single pass and process",
        ):
            rows += [bench.single(category, seed), bench.process(category, seed)]
        figures["critic"] = bench.critic_figures()
        for category in progress.track(COMPOSITIONS, description="what else the cost buys"):
            rows += bench.others(category)
    figures["without_regions"] = {
        "mean_kept_psnr": statistics.fmean(bench.kept),
        "share_of_at_least_32_dB": statistics.fmean(psnr >= 32 for psnr in bench.kept),
    }
    result = {"rows": [asdict(row) for row in rows], **figures}
    print(json.dumps(result, indent=2) if as_json else markdown(rows, figures))


class Bench:
    """The models, and what the process's trajectories tell of the critic."""

    def __init__(self, each: int, output: Path | None, critic: Which) -> None:
        self.each, self.output = each, output
        self.painter = load_painter()
        taught = critic == Which.process
        self.critic = load_process_critic() if taught else strokes.load()[1]
        self.thinker = TaughtThinker(self.critic) if taught else StrokesThinker(self.critic)
        self.paintings: list[tuple[Wanted, Painting]] = []
        self.passes: dict[str, int] = {}  # that the process took for a prompt, with the first seed
        self.kept: list[float] = []  # PSNR in dB outside an object's place, of strokes without a region

    def single(self, category: str, seed: int) -> Row:
        return self._row(SINGLE, category, seed, lambda wanted, n: (self.painter.draft(wanted.prompt, n).picture, 1))

    def process(self, category: str, seed: int) -> Row:
        def make(wanted: Wanted, n: int) -> tuple[Tensor, int]:
            painting = paint(wanted.prompt, self.painter, self.thinker, SETTINGS, seed=n)
            if seed == 0:
                self.paintings.append((wanted, painting))
                self.passes[wanted.prompt] = painting.trajectory.passes
                if self.output is not None and category in COMPOSITIONS:
                    save_painting(painting, self.output / category.split()[0] / f"{n:05}")
            return painting.picture, painting.trajectory.passes

        return self._row(PROCESS, category, seed, make)

    def others(self, category: str) -> Iterator[Row]:
        """What is compared with the process on compositions, with the first seed."""

        def settings(**changes: Any) -> Make:
            return lambda wanted, n: self._painted(plan_of(wanted.prompt), replace(SETTINGS, **changes), n)

        ways: dict[str, Make] = {
            "prompt expansion": self._expanded,
            "best of as many passes": self._best,
            f"latent moved by the critic, {LATENT_STEPS} steps": self._moved,
            "no inspection": settings(inspect=False),
            "no rollback": settings(roll_back=False),
            "whole draft first": settings(whole_draft=True),
            "no regions": self._without_regions,
            "a perfect inspector": lambda wanted, n: self._painted(
                plan_of(wanted.prompt), SETTINGS, n, OracleThinker()
            ),
        }
        for way, make in ways.items():
            yield self._row(way, category, 0, make)

    def critic_figures(self) -> dict[str, dict[str, float]]:
        """How often the critic was right, by the scene reader: of all prompts, and by category."""
        by_category: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in CATEGORIES}
        for wanted, painting in self.paintings:
            figures = by_category[wanted.category]
            for name, right in self._judged(wanted, painting):
                figures[name].append(right)
            for name, right in self._planned(wanted):
                figures[name].append(right)
        names = dict.fromkeys(name for figures in by_category.values() for name in figures)
        every = {name: [right for some in by_category.values() for right in some[name]] for name in names}
        return {
            group: {name: statistics.fmean(values) for name, values in figures.items() if values}
            for group, figures in {"all": every, **by_category}.items()
        }

    def _judged(self, wanted: Wanted, painting: Painting) -> Iterator[tuple[str, bool]]:
        """What the critic said of the pictures on the way, and whether it was right."""
        plan, run, before = painting.trajectory.plan, set[str](), None
        for step in painting.trajectory.steps:
            run.add(step.stroke)
            picture = painting.canvases[step.picture].picture
            true = truths(plan, picture)
            for fact, reading in zip(plan.facts, step.reflection.readings, strict=True):
                due = fact.stroke is None or fact.stroke in run
                name = "facts right" if due else "facts before their stroke right"
                yield name, (reading.p >= HOLDS) == true[fact.id]
            if step.accepted and before is not None:
                broke = any(before[name] and not true[name] for name in before)
                yield "accepted strokes that broke a true fact", broke
            before = true if step.accepted else before
            yield "next steps right", self._next_is_right(picture, wanted)
        right = shows(read_scenes(painting.picture), [wanted])[0]
        yield "pictures right", right
        if painting.trajectory.stop_reason == DONE:
            yield "all held is right", right

    def _planned(self, wanted: Wanted) -> Iterator[tuple[str, bool]]:
        """Whether the critic's plan is right, and what it says of a step of it and of another one."""
        if not isinstance(self.thinker, TaughtThinker):
            return
        planned_so = described(wanted.prompt)
        yield "plans right", self.thinker.describe(wanted.prompt) == planned_so
        random = np.random.default_rng([7, len(wanted.prompt)])
        for _ in range(CONFLICTS):
            instruction, fits = drawn_step(wanted.prompt, random)
            yield "conflicts right", self.thinker.fits(instruction, planned_so) == fits

    @torch.no_grad()
    def exercises(self) -> dict[str, float]:
        """Of held-out exercises of the critic's first lessons: mean error of P(Yes) by topic, and texts right."""
        generator = torch.Generator().manual_seed(2)
        pool = make_pool(EXERCISED, self.painter.pipeline.vae, generator, halved=False)
        errors: dict[str, list[float]] = defaultdict(list)
        for _ in range(LESSONS):
            lesson = make_lesson(pool, generator, hardened=True)
            for image, question, yes in zip(lesson.images, lesson.questions, lesson.yes.tolist(), strict=False):
                topic = next((name for name, word in TOPICS.items() if word in question), "facts")
                said = self.critic.log_likelihood(image[None], [Question(question)]).exp()
                errors[topic].append(abs(float(said) - yes))
            written = list(zip(lesson.images[YES_NO:], lesson.questions[YES_NO:], lesson.texts, strict=True))
            for image, question, text in written:
                errors["texts"].append(float(self.critic.answer(image[None], question)[0].strip() != text))
        return {f"{name}, error": statistics.fmean(values) for name, values in errors.items()}

    def _next_is_right(self, picture: Tensor, wanted: Wanted) -> bool:
        """Whether the critic writes the very next step on the way from a picture to what is planned."""
        there = sorted(
            (thing for thing, *_ in things_there(read_scenes(picture), 0)), key=lambda t: PLACES.index(t.place)
        )
        words = parse_prompt(wanted.prompt)  # of the colours only those that it says
        said = self.critic.answer(picture, ask_next(words))[0]
        return said.strip() == next_step(there, planned(words))

    def _row(self, way: str, category: str, seed: int, make: Make) -> Row:
        started, right, passes = time.perf_counter(), [], []
        for number, wanted in enumerate(wanted_prompts(category, self.each)):
            picture, cost = make(wanted, 10_000 * seed + number)
            right.append(shows(read_scenes(picture), [wanted])[0])
            passes.append(cost)
        seconds = (time.perf_counter() - started) / len(right)
        return Row(way, category, seed, statistics.fmean(right), statistics.fmean(passes), seconds)

    def _painted(self, plan: Plan, settings: Settings, seed: int, thinker: Thinker | None = None) -> tuple[Tensor, int]:
        painting = paint(plan, self.painter, thinker or self.thinker, settings, seed)
        return painting.picture, painting.trajectory.passes

    def _expanded(self, wanted: Wanted, seed: int) -> tuple[Tensor, int]:
        return self.painter.draft(plan_of(wanted.prompt).description, seed).picture, 1

    def _best(self, wanted: Wanted, seed: int) -> tuple[Tensor, int]:
        plan, passes = plan_of(wanted.prompt, as_said=True), self.passes[wanted.prompt]
        return best_of_n(plan, self.painter, self.thinker, passes, seed).picture, passes

    def _moved(self, wanted: Wanted, seed: int) -> tuple[Tensor, int]:
        plan = plan_of(wanted.prompt, as_said=True)
        questions = [Question(fact.question, fact.answer) for fact in plan.facts]
        vae = self.painter.pipeline.vae

        def decode(latent: Tensor) -> Tensor:
            return ((vae.decode(latent, return_dict=False)[0] + 1) / 2).clamp(0, 1)

        moved = optimise_latent(
            self.painter.draft(wanted.prompt, seed).latent,
            decode,
            lambda picture: self.critic.log_likelihood(picture, questions).mean(),
            LATENT_STEPS,
            LATENT_RATE,
        )
        with torch.no_grad():
            return decode(moved), 1 + LATENT_STEPS

    def _without_regions(self, wanted: Wanted, seed: int) -> tuple[Tensor, int]:
        plan = plan_of(wanted.prompt)
        places = {stroke.id: stroke.region for stroke in plan.strokes}
        free = replace(plan, strokes=tuple(replace(stroke, region=None) for stroke in plan.strokes))
        painting = paint(free, self.painter, self.thinker, SETTINGS, seed)
        kept = None
        for step in painting.trajectory.steps:
            picture, region = painting.canvases[step.picture].picture, places.get(step.stroke)
            if step.accepted and kept is not None and region is not None:
                self.kept.append(kept_psnr(picture, kept, region))
            kept = picture if step.accepted else kept
        return painting.picture, painting.trajectory.passes


@torch.no_grad()
def seen_scenes(painter: FluxPainter) -> tuple[Tensor, Scenes]:
    """Random scenes as they are after the VAE, [SCENES, 3, 128, 128], and what they show."""
    random = np.random.default_rng(0)
    words = [random_prompt(random)[1] for _ in range(SCENES)]
    scenes = build_scenes(words, random_uniforms(SCENES, torch.Generator().manual_seed(0)))
    vae: Any = painter.pipeline.vae
    seen = [vae.decoder(vae.encoder(some * 2 - 1)) for some in render(scenes).split(4)]
    return ((torch.cat(seen) + 1) / 2).clamp(0, 1), scenes


def markdown(rows: Sequence[Row], figures: dict[str, Any]) -> str:
    """A line for each way and category, means over seeds."""
    lines = ["| way | category | right | passes | seconds |", "|---|---|---|---|---|"]
    for way in dict.fromkeys(row.way for row in rows):
        for category in CATEGORIES:
            own = [row for row in rows if (row.way, row.category) == (way, category)]
            if own:
                right, passes, seconds = (
                    statistics.fmean(getattr(row, name) for row in own) for name in ("right", "passes", "seconds")
                )
                spread = ", ".join(f"{row.right:.3f}" for row in own)
                lines.append(f"| {way} | {category} | {right:.3f} ({spread}) | {passes:.1f} | {seconds:.2f} |")
    return "\n".join([*lines, "", json.dumps(figures, indent=2)])


if __name__ == "__main__":
    typer.run(main)
