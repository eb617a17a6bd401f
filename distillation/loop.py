"""A whole distillation in one call: a run, driven to its end, and those who watch it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..core.errors import EnoughLearned, RecipeError, StopRequested
from ..core.protocols import Critic, Generator
from .anchors import OnAnchor
from .recipe import Recipe
from .result import DistillationResult, Preview, StepReport
from .run import Run, ShouldStop

OnStep = Callable[[StepReport, Preview], None]
Observer = Callable[[Run, StepReport, Preview], None]
log = logging.getLogger(__name__)


def distill(
    generator: Generator,
    critic: Critic | Mapping[str, Critic],
    recipe: Recipe,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
    resume_from: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: int = 25,
    take_turns: bool = False,
    on_anchor: OnAnchor | None = None,
    observers: Sequence[Observer] = (),
    initial_lora: Mapping[str, Tensor] | None = None,
) -> DistillationResult:
    """Teaches the generator's LoRA what the critics are asked (paper, algorithm 1).

    Args:
        generator: its first `len(recipe.prompts)` prompts are trained on, or all of them if the recipe names none.
        critic: one critic (named "default"), or several by name.
        recipe: what to teach and how.
        on_step: called after every step with its report and the newest picture. An error of its own does not end the
            run: it is logged. `StopRequested` does.
        should_stop: asked before every backward pass; True ends the run, its result is the LoRA so far.
        resume_from: a checkpoint of the same recipe and model; the run goes on as if it had never stopped.
        checkpoint_path: where to write a checkpoint every `checkpoint_every` steps, so that a crash loses little. One
            that cannot be written is logged, and training goes on.
        take_turns: whether the generator leaves `training()` while critics are asked, so that one device need not
            hold both. A generator that cannot keep its graph meanwhile (without gradient checkpointing) makes each
            picture twice, once without gradient; the result is the same.
        on_anchor: called while the pool of anchors is made, with the number of pictures made and that of all.
        observers: called after every step like `on_step`, and with the run itself: for what wants to take snapshots,
            or to make pictures meanwhile. `EnoughLearned` ends the run as early stopping does.
        initial_lora: weights to start from instead of a fresh LoRA, by the names of `generator.lora_parameters()`.

    Raises:
        RecipeError: the recipe does not fit the generator or the critics.
        LoraFileError: the checkpoint to resume from cannot be read, or is of another recipe or model.
        DistillationDiverged: a loss or gradient was not finite; its `result` holds the last good LoRA.
        DistillationFailed: a step after the first failed for another reason, its cause, such as full memory; its
            `result` holds the LoRA so far.
    """
    if checkpoint_every < 1:
        raise RecipeError(f"Expected checkpoint_every as a whole number of at least 1, got {checkpoint_every!r}.")
    watching: list[Observer] = []
    if checkpoint_path is not None:
        watching.append(_checkpointing(checkpoint_path, checkpoint_every))
    if on_step is not None:
        watching.append(lambda run, report, preview: on_step(report, preview))
    watching += observers
    run = Run(generator, critic, recipe, resume_from, take_turns, initial_lora)
    try:
        with run:
            run.prepare(on_anchor, should_stop)
            while not run.finished:
                if is_learned(recipe, run.history):
                    return run.result("early_stop")
                report, preview = run.step(should_stop)
                for observer in watching:
                    _tell(observer, run, report, preview)
    except EnoughLearned:
        return run.result("early_stop")
    except StopRequested:  # also of a generator that leaves `training()` so
        return run.result("interrupted")
    return run.result("completed")


def _tell(observer: Observer, run: Run, report: StepReport, preview: Preview) -> None:
    """Those who only watch a run cannot end it by their mistakes."""
    try:
        observer(run, report, preview)
    except (StopRequested, EnoughLearned):
        raise
    except Exception as error:
        log.warning("After step %d: %s: %s Training goes on.", report.step, type(error).__name__, error)


def _checkpointing(path: str | Path, every: int) -> Observer:
    def save(run: Run, report: StepReport, preview: Preview) -> None:
        if report.step % every == 0:
            run.snapshot().save(path)

    return save


def is_learned(recipe: Recipe, history: list[StepReport]) -> bool:
    """Whether every question was asked in the last `stop_steps` steps, each P(answer) above the threshold."""
    if recipe.stop_probability is None or len(history) < recipe.stop_steps:
        return False
    by_question = zip(*(report.p_answer for report in history[-recipe.stop_steps :]), strict=True)
    lowest = [min((p for p in values if not math.isnan(p)), default=0.0) for values in by_question]
    return min(lowest) > recipe.stop_probability
