"""Dual-process distillation: generate, judge, backpropagate into the LoRA, step, report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import RecipeError, StopRequested
from ..core.protocols import Critic, Draw, Estimate, Generator
from .checkpoint import Checkpoint
from .draws import draw_batch
from .loss import check_questions, vqa_loss
from .recipe import Recipe
from .regularizers import range_penalty, velocity_distance
from .result import (
    DistillationDiverged,
    DistillationError,
    DistillationFailed,
    DistillationResult,
    Preview,
    StepReport,
    mean_probability,
)

OnStep = Callable[[StepReport, Preview], None]


def distill(
    generator: Generator,
    critic: Critic | Mapping[str, Critic],
    recipe: Recipe,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume_from: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: int = 25,
    take_turns: bool = False,
) -> DistillationResult:
    """Teaches the generator's LoRA what the critics are asked (paper, algorithm 1).

    Args:
        generator: its first `len(recipe.prompts)` prompts are trained on, or all of them if the recipe names none.
        critic: one critic (named "default"), or several by name.
        recipe: what to teach and how.
        on_step: called after every step with its report and the newest picture.
        should_stop: asked before every backward pass; True ends the run, its result is the LoRA so far.
        resume_from: a checkpoint of the same recipe and model; the run goes on as if it had never stopped.
        checkpoint_path: where to write a checkpoint every `checkpoint_every` steps, so that a crash loses little.
        take_turns: whether the generator leaves `training()` while critics are asked, so that one device need not
            hold both. The generator then makes each picture twice, once without gradient; the result is the same.

    Raises:
        RecipeError: the recipe does not fit the generator or the critics.
        LoraFileError: the checkpoint cannot be read, or is of another recipe or model.
        DistillationDiverged: a loss or gradient was not finite; its `result` holds the last good LoRA.
        DistillationFailed: a step after the first failed for another reason, its cause, such as full memory; its
            `result` holds the LoRA so far.
    """
    critics = dict(critic) if isinstance(critic, Mapping) else {"default": critic}
    if checkpoint_every < 1:
        raise RecipeError(f"Expected checkpoint_every as a whole number of at least 1, got {checkpoint_every!r}.")
    num_prompts = _check_prompts(generator, recipe)
    check_questions(recipe.questions, critics, num_prompts)
    num_steps = recipe.num_inference_steps or generator.num_inference_steps

    generator.add_lora(recipe.rank, recipe.lora_alpha, recipe.seed)
    parameters = generator.lora_parameters()
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=recipe.learning_rate, weight_decay=0.0)
    weights = generator.info.weights_sha256
    history: list[StepReport] = []
    if resume_from is not None:
        rows = Checkpoint.load(resume_from).restore(parameters, optimizer, recipe, weights)
        history = [StepReport(**{**row, "p_answer": tuple(row["p_answer"])}) for row in rows]

    def snapshot() -> Checkpoint:
        return Checkpoint.take(parameters, optimizer, recipe, weights, [asdict(r) for r in history])

    def result(reason: str) -> DistillationResult:
        infos = {name: c.info for name, c in critics.items()}
        return DistillationResult(generator, infos, recipe, tuple(history), reason, snapshot())

    try:
        with nullcontext() if take_turns else generator.training():
            for step in range(len(history), recipe.train_steps):
                started = time.perf_counter()
                if _is_learned(recipe, history):
                    return result("early_stop")
                optimizer.zero_grad(set_to_none=True)
                batches = []
                for micro in range(recipe.gradient_accumulation):
                    if should_stop is not None and should_stop():
                        return result("interrupted")
                    draw = draw_batch(recipe, step, micro * recipe.batch_size, num_prompts, num_steps)
                    batches.append(_learn_from(generator, critics, recipe, draw, take_turns))

                loss = _mean([b.loss for b in batches])
                norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), recipe.max_grad_norm))
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise DistillationDiverged(
                        step + 1, "gradient" if math.isfinite(loss) else "loss", result("diverged")
                    )
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(step)
                optimizer.step()

                history.append(
                    StepReport(
                        step=step + 1,
                        train_steps=recipe.train_steps,
                        loss=loss,
                        p_answer=mean_probability(torch.cat([b.log_likelihood for b in batches])),
                        velocity_distance=_mean([b.velocity_distance for b in batches]),
                        range_penalty=_mean([b.range_penalty for b in batches]),
                        grad_norm=norm,
                        learning_rate=recipe.learning_rate_at(step),
                        seconds=time.perf_counter() - started,
                    )
                )
                if checkpoint_path is not None and (step + 1) % checkpoint_every == 0:
                    snapshot().save(checkpoint_path)
                if on_step is not None:
                    on_step(history[-1], batches[-1].preview)
    except StopRequested:
        return result("interrupted")
    except Exception as error:
        if not history or isinstance(error, DistillationError):
            raise
        raise DistillationFailed(len(history) + 1, error, result("failed")) from error
    return result("completed")


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


@dataclass(frozen=True)
class _Batch:
    """Detached terms of one backward pass."""

    loss: float
    log_likelihood: Tensor  # [B, Q]
    velocity_distance: float
    range_penalty: float
    preview: Preview


def _learn_from(
    generator: Generator, critics: Mapping[str, Critic], recipe: Recipe, draw: Draw, take_turns: bool
) -> _Batch:
    """Generates, judges and backpropagates one batch; its gradient is added to the LoRA's, divided by the batches."""
    with_base = recipe.velocity_weight > 0
    turn = generator.training if take_turns else nullcontext
    with turn(), torch.set_grad_enabled(not take_turns):
        estimated = generator.estimate(draw, with_base and not take_turns)
    preview = Preview(estimated.image.detach().clamp(0, 1), draw.prompt_indices)
    if not torch.isfinite(estimated.image).all():  # no critic could look at it
        unknown = torch.full((len(estimated.image), len(recipe.questions)), torch.nan)
        return _Batch(math.nan, unknown, 0.0, 0.0, preview)
    judged = vqa_loss(critics, estimated.image, recipe.questions, draw.prompt_indices)
    with turn():
        if take_turns:
            estimated = generator.estimate(draw, with_base)  # the same picture, now with its graph
        velocity, out_of_range = _penalties(recipe, estimated)
        # One backward pass through the generator carries the critics' gradient and the penalties'.
        total = (judged.image_gradient.to(estimated.image) * estimated.image).sum()
        total = total + recipe.velocity_weight * velocity + recipe.range_weight * out_of_range
        (total / recipe.gradient_accumulation).backward()
    return _Batch(judged.loss, judged.log_likelihood, float(velocity.detach()), float(out_of_range.detach()), preview)


def _penalties(recipe: Recipe, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """The velocity distance and the range penalty; 0 where the recipe does not weigh them."""
    velocity = out_of_range = estimate.image.new_zeros(())
    if recipe.velocity_weight > 0:
        assert estimate.base_prediction is not None
        velocity = velocity_distance(estimate.prediction, estimate.base_prediction)
    if recipe.range_weight > 0:
        out_of_range = range_penalty(estimate.image)
    return velocity, out_of_range


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _is_learned(recipe: Recipe, history: list[StepReport]) -> bool:
    """Whether every question was asked in the last `stop_steps` steps, each P(answer) above the threshold."""
    if recipe.stop_probability is None or len(history) < recipe.stop_steps:
        return False
    by_question = zip(*(report.p_answer for report in history[-recipe.stop_steps :]), strict=True)
    lowest = [min((p for p in values if not math.isnan(p)), default=0.0) for values in by_question]
    return min(lowest) > recipe.stop_probability
