"""Plan, draft, inspect, refine: a picture made stroke by stroke, each of which has to earn its place.

"Think in Strokes, Not Pixels" (arXiv 2604.04746) with a painter and a thinker that are models of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ProcessError, StopRequested
from .inspecting import Ledger, checked_blank, failing, gain
from .protocols import Canvas, Painter, Thinker
from .resuming import RecordedPainter, RecordedThinker, check_same
from .states import (
    ACCEPT,
    BACKTRACK,
    HELD,
    LOST,
    REFINE,
    RESTART,
    STOP,
    UNJUDGED,
    Plan,
    Reading,
    Reflection,
    Region,
    Step,
    Stroke,
    Trajectory,
)

DRAFT = "draft"  # the stroke of the first picture
DONE, BUDGET, NO_GAIN, INTERRUPTED, FAILED = "done", "budget", "no gain", "interrupted", "failed"
RUNNING = "running"  # as long as it has not stopped; a killed run stays so


@dataclass(frozen=True)
class Settings:
    """How far the process goes. Each has its own words in `field.metadata`."""

    budget: int = field(default=12, metadata={"help": "Passes of the painter at most, the draft among them."})
    refinements: int = field(default=2, metadata={"help": "Further attempts at a stroke that did not come out."})
    restarts: int = field(default=1, metadata={"help": "New drafts where the first holds too little."})
    restart_below: float = field(default=0.3, metadata={"help": "Share of held facts below which a draft is too bad."})
    keep_psnr: float = field(
        default=30.0, metadata={"help": "Least PSNR in dB of what lies outside a stroke's region, against before."}
    )
    patience: int = field(default=2, metadata={"help": "Rounds through all strokes without gain before it stops."})
    whole_draft: bool = field(
        default=True, metadata={"help": "Whether the draft is of the whole prompt, or of the background alone."}
    )
    inspect: bool = field(default=True, metadata={"help": "Whether strokes are inspected; else each runs once."})
    roll_back: bool = field(default=True, metadata={"help": "Whether a stroke that did harm is taken back."})

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("refinements", 0), ("restarts", 0), ("patience", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ProcessError(f"Expected {name} of at least {least}, got {value!r}.")
        if not 0 <= self.restart_below <= 1:
            raise ProcessError(f"Expected restart_below between 0 and 1, got {self.restart_below!r}.")


@dataclass(frozen=True)
class Painting:
    """A trajectory and the canvas of each of its steps, by name."""

    trajectory: Trajectory
    canvases: Mapping[str, Canvas]

    @property
    def canvas(self) -> Canvas:
        """The best one."""
        return self.canvases[self.trajectory.steps[self.trajectory.best].picture]

    @property
    def picture(self) -> Tensor:
        return self.canvas.picture

    @property
    def pictures(self) -> dict[str, Tensor]:
        """[1, 3, H, W] in [0, 1] of each step, by name."""
        return {name: canvas.picture for name, canvas in self.canvases.items()}


OnStep = Callable[[Painting], None]


class ProcessFailed(ProcessError):
    """The painter or the thinker failed on the way; `painting` is what was there, `cause` the error."""

    def __init__(self, cause: Exception, painting: Painting) -> None:
        steps = len(painting.trajectory.steps)
        super().__init__(f"The process failed after {steps} steps ({type(cause).__name__}: {cause}); these are kept.")
        self.cause, self.painting = cause, painting


def paint(
    wanted: str | Plan,
    painter: Painter,
    thinker: Thinker,
    settings: Settings | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    resume_from: Painting | None = None,
) -> Painting:
    """Makes a picture step by step; the best canvas is the result, not the last.

    Args:
        wanted: a prompt, which the thinker plans, or a plan.
        seed: the same one gives the same trajectory.
        on_step: called after each step with what there is so far.
        should_stop: asked before each pass; where it says so, or a model raises StopRequested, what is there is the
            result.
        resume_from: what an earlier call left, that was stopped, failed or killed; the result is the same as if it had
            not been. It may go on with a larger budget.

    Raises:
        ProcessError: no plan can be made, the critic gives one answer to everything, or `resume_from` was made
            otherwise.
        ProcessFailed: a pass after the first failed.
    """
    settings = settings or Settings()
    if resume_from is not None:
        plan = resume_from.trajectory.plan
        check_same(resume_from.trajectory, wanted, painter, thinker, asdict(settings), seed)
        painter = RecordedPainter(resume_from, painter)
        thinker = RecordedThinker(resume_from, thinker, painter)
    else:
        plan = thinker.plan(wanted) if isinstance(wanted, str) else wanted
    return _Process(plan, painter, thinker, settings, seed, on_step, should_stop).run()


class _Stopped(Exception):
    """`reason` is why no further pass is made."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Process:
    def __init__(
        self,
        plan: Plan,
        painter: Painter,
        thinker: Thinker,
        settings: Settings,
        seed: int,
        on_step: OnStep | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.plan, self.painter, self.thinker, self.settings = plan, painter, thinker, settings
        self.seed, self.on_step, self.should_stop = seed, on_step, should_stop
        self.seeds = np.random.default_rng(seed)
        self.ledger = Ledger(plan)
        self.steps: list[Step] = []
        self.canvases: dict[str, Canvas] = {}
        self.passes = 0
        self.canvas: Canvas | None = None
        self.readings: tuple[Reading, ...] = ()
        self.best = 0
        self.drawn: list[Stroke] = []  # strokes on the canvas

    def run(self) -> Painting:
        try:
            reason = self._paint()
        except _Stopped as stopped:
            reason = stopped.reason
        except StopRequested:  # from within a model
            reason = INTERRUPTED
        except Exception as error:
            if self.canvas is None:
                raise
            raise ProcessFailed(error, self._painting(FAILED)) from error
        if self.canvas is None:
            raise ProcessError("The process was stopped before there was a picture.")
        return self._painting(reason)

    def _paint(self) -> str:
        self._draft()
        rounds_without_gain = 0
        while rounds_without_gain < self.settings.patience:
            before = gain(self.readings)
            for stroke in self.plan.strokes:
                if self._wants(stroke):
                    self._carry_out(stroke)
            if not self.settings.inspect or _all_held(self.readings):
                return DONE
            rounds_without_gain = 0 if gain(self.readings) > before else rounds_without_gain + 1
        return NO_GAIN

    # Draft

    def _draft(self) -> None:
        settings, plan = self.settings, self.plan
        prompt = plan.description or plan.prompt if settings.whole_draft else plan.background or plan.prompt
        for attempt in range(1 + settings.restarts):
            seed = self._next_pass()
            canvas = as_shown(self.painter.draft(prompt, seed))
            if not self.ledger.blank and settings.inspect:
                self.ledger = Ledger(plan, checked_blank(self.thinker, canvas.picture, plan.facts))
            readings = self._inspect(canvas.picture)
            held = sum(reading.status == HELD for reading in readings)
            judged = sum(reading.status != UNJUDGED for reading in readings)
            too_bad = settings.whole_draft and held < settings.restart_below * judged
            better = self.canvas is None or gain(readings) > gain(self.readings)
            again = settings.inspect and too_bad and attempt < settings.restarts and self.passes < settings.budget
            reflection = Reflection(readings, verdict=RESTART if again else ACCEPT)
            self._add(DRAFT, prompt, prompt, canvas, reflection, seed, accepted=better)
            if not again:
                return

    # Strokes

    def _wants(self, stroke: Stroke) -> bool:
        """Whether a stroke has something to bring about. After a draft of the background each one has, at first."""
        if not self.settings.inspect or not (self.settings.whole_draft or self.ledger.has_run(stroke.id)):
            return True
        status = {reading.fact: reading.status for reading in self.readings}
        return any(status[fact.id] not in (HELD, UNJUDGED) for fact in self.plan.facts_of(stroke.id))

    def _carry_out(self, stroke: Stroke) -> None:
        """Attempts a stroke until it is accepted: from the canvas, then on what came of that, then anew."""
        assert self.canvas is not None
        instruction = self.thinker.conflict(stroke, self._scene(), self.plan.prompt)
        tried: list[str] = []
        base = self.canvas
        for attempt in range(1 + (self.settings.refinements if self.settings.inspect else 0)):
            seed = self._next_pass()
            now = replace(stroke, instruction=instruction)
            made = as_shown(self.painter.stroke(base, now, seed))
            self.ledger.run(stroke.id)
            readings = self._inspect(made.picture)
            kept = None if stroke.region is None else kept_psnr(made.picture, self.canvas.picture, stroke.region)
            own = [fact.id for fact in self.plan.facts_of(stroke.id)]
            accepted = not (self.settings.inspect and self.settings.roll_back) or improves(
                readings, self.readings, kept, self.settings.keep_psnr, own
            )
            if accepted:
                self._accept(now, made, readings, kept, seed)
                return
            tried.append(instruction)
            wrong = failing(readings, self.plan.facts)
            text, instruction = self.thinker.reflect(made.picture, wrong, tried, self.plan.prompt)
            harmless = not any(reading.status == LOST for reading in readings)
            verdict = REFINE if attempt == 0 and harmless else BACKTRACK
            reflection = Reflection(readings, text, verdict, instruction)
            self._add(
                stroke.id, now.instruction, self._scene(), made, reflection, seed, accepted=False, kept=kept, stroke=now
            )
            base = made if verdict == REFINE else self.canvas

    def _accept(
        self, stroke: Stroke, made: Canvas, readings: tuple[Reading, ...], kept: float | None, seed: int
    ) -> None:
        self.drawn.append(stroke)
        verdict = STOP if _all_held(readings) else ACCEPT
        self._add(
            stroke.id,
            stroke.instruction,
            self._scene(),
            made,
            Reflection(readings, verdict=verdict),
            seed,
            accepted=True,
            kept=kept,
            stroke=stroke,
        )

    # What is common

    def _inspect(self, picture: Tensor) -> tuple[Reading, ...]:
        return self.ledger.readings(self.thinker.read(picture, self.plan.facts))

    def _scene(self) -> str:
        """The scene so far in words."""
        start = (self.plan.description or self.plan.prompt) if self.settings.whole_draft else self.plan.background
        return "; ".join(filter(None, [start, *(stroke.instruction for stroke in self.drawn)]))

    def _next_pass(self) -> int:
        """The seed of the next pass of the painter, if there is to be one."""
        if self.should_stop():
            raise _Stopped(INTERRUPTED)
        if self.passes >= self.settings.budget:
            raise _Stopped(BUDGET)
        self.passes += 1
        return int(self.seeds.integers(2**63))

    def _add(
        self,
        name: str,
        ins: str,
        des: str,
        canvas: Canvas,
        reflection: Reflection,
        seed: int,
        accepted: bool,
        kept: float | None = None,
        stroke: Stroke | None = None,
    ) -> None:
        masked = stroke is not None and stroke.region is not None and self.painter.keeps_outside
        picture = f"step_{len(self.steps):02}"
        step = Step(name, ins, des, picture, reflection, seed, accepted, masked, kept)
        if accepted:
            if not self.steps or gain(reflection.readings)[0] >= gain(self.steps[self.best].reflection.readings)[0]:
                self.best = len(self.steps)
            self.canvas, self.readings = canvas, reflection.readings
            self.ledger.keep(reflection.readings)
        self.steps.append(step)
        self.canvases[picture] = canvas
        if self.on_step is not None:
            self.on_step(self._painting(RUNNING))

    def _painting(self, reason: str) -> Painting:
        trajectory = Trajectory(
            plan=self.plan,
            steps=tuple(self.steps),
            best=self.best,
            passes=self.passes,
            seed=self.seed,
            models={"painter": self.painter.info.to_dict(), "thinker": self.thinker.info.to_dict()},
            settings=asdict(self.settings),
            stop_reason=reason,
            blank=self.ledger.blank,
        )
        return Painting(trajectory, dict(self.canvases))


def as_shown(canvas: Canvas) -> Canvas:
    """Its picture in whole steps of 1/255, so that what is judged is what is kept in a file."""
    return replace(canvas, picture=(canvas.picture.float().clamp(0, 1) * 255).round() / 255)


def _all_held(readings: Sequence[Reading]) -> bool:
    """All that can be judged."""
    return all(reading.status in (HELD, UNJUDGED) for reading in readings)


def improves(
    readings: Sequence[Reading],
    before: Sequence[Reading],
    kept: float | None,
    least: float = Settings.keep_psnr,
    own: Collection[str] = (),
) -> bool:
    """Whether a stroke did no harm and brought something: nothing lost, the rest kept, and either more held than before
    or all of its `own` facts, of which the critic may have believed before that they were."""
    if any(reading.status == LOST for reading in readings) or (kept is not None and kept < least):
        return False
    if gain(readings) > gain(before):
        return True
    brought = own and all(reading.status in (HELD, UNJUDGED) for reading in readings if reading.fact in own)
    return bool(brought) and gain(readings)[0] >= gain(before)[0]


def kept_psnr(after: Tensor, before: Tensor, region: Region) -> float:
    """PSNR in dB between pictures [1, 3, H, W] outside a region; infinite where nothing changed."""
    kept = outside(region, *after.shape[-2:])
    if not kept.any():
        return math.inf
    error = float((after - before).square().mean(dim=(0, 1))[kept].mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def outside(region: Region, height: int, width: int) -> Tensor:
    """The pixels of a picture that a region does not touch, [H, W], bool."""
    kept = torch.ones(height, width, dtype=torch.bool)
    rows = slice(math.floor(region.top * height), math.ceil(region.bottom * height))
    columns = slice(math.floor(region.left * width), math.ceil(region.right * width))
    kept[rows, columns] = False
    return kept
