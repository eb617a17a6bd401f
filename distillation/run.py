"""Dual-process distillation, a step at a time: generate, judge, backpropagate into the LoRA, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.attention import attention_with_gradients
from ..core.errors import RecipeError, StopRequested
from ..core.protocols import SLIDER, Critic, Generator
from .anchors import Anchor, OnAnchor, draw_anchors, find_anchors
from .asking import check_questions
from .batch import Batch, learn_from, needs_of
from .checkpoint import Checkpoint
from .draws import draw_batch, draw_questions, draw_slider
from .penalties import ANCHORS
from .recipe import Recipe
from .result import (
    DistillationDiverged,
    DistillationError,
    DistillationFailed,
    DistillationResult,
    Preview,
    StepReport,
    mean_probability,
)
from .slider import follows_slider
from .targets import check_targets

ShouldStop = Callable[[], bool]


class Run:
    """A distillation that its host drives: enter it, call `step()` until `finished`, take `result()`.

    While it is entered, the generator is in `training()`, unless it takes turns with the critics. `result()` and
    `snapshot()` can be asked for at any time between two steps.

    Args:
        generator, critic, recipe, resume_from, take_turns, initial_lora: see `distill`.

    Raises:
        RecipeError: the recipe does not fit the generator or the critics, or the initial LoRA does not fit both.
        LoraFileError: the checkpoint cannot be read, or is of another recipe or model.
    """

    def __init__(
        self,
        generator: Generator,
        critic: Critic | Mapping[str, Critic],
        recipe: Recipe,
        resume_from: str | Path | None = None,
        take_turns: bool = False,
        initial_lora: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.generator, self.recipe = generator, recipe
        self.critics = dict(critic) if isinstance(critic, Mapping) else {"default": critic}
        self.history: list[StepReport] = []
        self.anchors: tuple[Anchor, ...] = ()
        self._take_turns = take_turns
        self._num_prompts = _check_prompts(generator, recipe)
        check_questions(recipe.questions, self.critics, self._num_prompts, generator.prompts)
        check_targets(recipe.targets, self._num_prompts)
        if recipe.targets and follows_slider(recipe):
            raise RecipeError("The recipe has targets and a slider, but a target is of no value of it. Leave one out.")

        slider = {"slider": True} if follows_slider(recipe) else {}
        generator.add_lora(recipe.rank, recipe.lora_alpha, recipe.seed, recipe.lora_targets, **slider)
        self._parameters = generator.lora_parameters()
        if initial_lora is not None:
            _start_from(initial_lora, {n: p for n, p in self._parameters.items() if not n.startswith(SLIDER)})
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=recipe.learning_rate, betas=(0.9, recipe.adam_beta2), weight_decay=0.0
        )
        self._weights = generator.info.weights_sha256
        if resume_from is not None:
            checkpoint = Checkpoint.load(resume_from)
            rows = checkpoint.restore(self._parameters, self._optimizer, recipe, self._weights)
            self.history = [StepReport.from_dict(row) for row in rows]
            self.anchors = checkpoint.anchors

    def __enter__(self) -> Run:
        self._entered = ExitStack()
        if not self._take_turns:
            self._entered.enter_context(self.generator.training())
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._entered.__exit__(*error)  # type: ignore[arg-type]

    @property
    def finished(self) -> bool:
        """Whether every step of the recipe has been made."""
        return len(self.history) >= self.recipe.train_steps

    def prepare(self, on_anchor: OnAnchor | None = None, should_stop: ShouldStop | None = None) -> None:
        """Finds the anchors, if the recipe weighs some and a checkpoint has not brought them; `step` does it, too.

        Args:
            on_anchor: called with the number of pictures made and that of the whole pool.
            should_stop: asked before every batch.

        Raises:
            StopRequested: `should_stop` said so, or the generator's host.
        """
        if not self.anchors and needs_of(self.recipe, ANCHORS):
            self.anchors = find_anchors(
                self.generator, self.critics, self.recipe, self._num_prompts, on_anchor, should_stop
            )

    def step(self, should_stop: ShouldStop | None = None) -> tuple[StepReport, Preview]:
        """One optimiser step.

        Args:
            should_stop: asked before every backward pass.

        Raises:
            StopRequested: `should_stop` said so, or the generator's host; the LoRA is that of the step before.
            DistillationDiverged: a loss or gradient was not finite; the LoRA is that of the step before.
            DistillationFailed: a step after the first failed for another reason, its cause.
        """
        try:
            with attention_with_gradients():
                return self._step(should_stop)
        except (StopRequested, DistillationError):
            raise
        except Exception as error:
            if not self.history:
                raise
            raise DistillationFailed(len(self.history) + 1, error, self.result("failed")) from error

    def _step(self, should_stop: ShouldStop | None) -> tuple[StepReport, Preview]:
        started = time.perf_counter()
        self.prepare(should_stop=should_stop)
        recipe, step = self.recipe, len(self.history)
        self._optimizer.zero_grad(set_to_none=True)
        batches = [self._learn(step, micro, should_stop) for micro in range(recipe.gradient_accumulation)]
        loss = _mean([b.loss for b in batches])
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), recipe.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            raise DistillationDiverged(step + 1, what, self.result("diverged"))
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        self._optimizer.step()
        self.history.append(
            StepReport(
                step=step + 1,
                train_steps=recipe.train_steps,
                loss=loss,
                p_answer=mean_probability(torch.cat([b.log_likelihood for b in batches])),
                penalties={name: _mean([b.penalties[name] for b in batches]) for name in recipe.penalties},
                grad_norm=norm,
                learning_rate=recipe.learning_rate_at(step),
                seconds=time.perf_counter() - started,
            )
        )
        return self.history[-1], batches[-1].preview

    def _learn(self, step: int, micro: int, should_stop: ShouldStop | None) -> Batch:
        if should_stop is not None and should_stop():
            raise StopRequested
        recipe = self.recipe
        steps = recipe.num_inference_steps or self.generator.num_inference_steps
        first = micro * recipe.batch_size
        slider = draw_slider(recipe, step, micro)
        draw = draw_batch(recipe, step, first, self._num_prompts, steps, slider)
        beside = draw_anchors(recipe, step, first, self.anchors, draw, steps) if self.anchors else None
        questions = [question.at(slider) for question in draw_questions(recipe, step)]
        return learn_from(self.generator, self.critics, recipe, questions, draw, beside, self._take_turns)

    def snapshot(self) -> Checkpoint:
        """All that it takes to go on from here, on the CPU."""
        history = [asdict(report) for report in self.history]
        return Checkpoint.take(self._parameters, self._optimizer, self.recipe, self._weights, history, self.anchors)

    def result(self, stop_reason: str) -> DistillationResult:
        """The LoRA so far and how it came to be; see `DistillationResult` for the reasons."""
        infos = {name: critic.info for name, critic in self.critics.items()}
        return DistillationResult(self.generator, infos, self.recipe, tuple(self.history), stop_reason, self.snapshot())


def _check_prompts(generator: Generator, recipe: Recipe) -> int:
    """How many of the generator's prompts are trained on."""
    count = len(recipe.prompts) or generator.num_prompts
    known = generator.prompts
    same = known is None or not recipe.prompts or tuple(known[:count]) == recipe.prompts
    if count > generator.num_prompts or not same:
        held = generator.num_prompts if known is None else list(known)
        raise RecipeError(
            f"The recipe's prompts must be the generator's first ones. The recipe has {list(recipe.prompts)}, "
            f"the generator holds {held}: load it with the recipe's prompts."
        )
    return count


def _start_from(initial: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in initial.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if given != wanted:
        differ = sorted(name for name in {*given, *wanted} if given.get(name) != wanted.get(name))
        raise RecipeError(
            f"The LoRA to start from does not fit: {len(differ)} of {len(wanted)} tensors differ, such as {differ[0]} "
            f"({given.get(differ[0])} instead of {wanted.get(differ[0])}). Start from one of this model and rank."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(initial[name])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
