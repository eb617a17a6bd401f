"""A run that goes on by a thriftier memory plan where memory runs out."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..core.protocols import Critic, Generator
from .loop import distill
from .memory import PLANS, Expectation, MemoryPlan, Sizes, thriftier
from .recipe import Recipe
from .result import DistillationFailed, DistillationResult

Arrange = Callable[[MemoryPlan], object]  # makes generator and critics lie by the plan from now on
log = logging.getLogger(__name__)


def distill_by_plan(
    generator: Generator,
    critic: Critic | Mapping[str, Critic],
    recipe: Recipe,
    expected: Expectation,
    sizes: Sizes,
    arrange: Arrange,
    plans: Sequence[MemoryPlan] = PLANS,
    **options: Any,
) -> DistillationResult:
    """`distill` by a memory plan; if the device's memory runs out, once more by the next thriftier one.

    The second attempt goes on from the last step that was made. It is said in the log.

    Args:
        expected: what the plan that is tried first comes to.
        sizes: by which the thriftier plan is found.
        arrange: how models are made to lie by a plan.
        plans: among which the thriftier one is looked for.
        options: of `distill`, without `take_turns`.

    Raises:
        DistillationFailed: memory ran out in the second attempt, too, or there is no thriftier plan; and as `distill`.
    """
    with ExitStack() as stack:
        try:
            arrange(expected.plan)
            return distill(generator, critic, recipe, take_turns=expected.plan.take_turns, **options)
        except (torch.OutOfMemoryError, DistillationFailed) as error:
            following = thriftier(expected, sizes, plans) if _is_out_of_memory(error) else None
            if following is None:
                raise
            if isinstance(error, DistillationFailed):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                options["resume_from"] = error.result.save_checkpoint(folder / "checkpoint.safetensors")
                made = error.result.steps
            else:
                made = 0
        log.warning(
            "Memory ran out after step %d with the plan '%s', %.1f GB expected. Going on with '%s', %.1f GB, which is "
            "slower and makes the same LoRA.",
            *(made, expected.plan.name, expected.peak / 1e9, following.plan.name, following.peak / 1e9),
        )
        gc.collect()  # what the error's traceback held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        arrange(following.plan)
        return distill(generator, critic, recipe, take_turns=following.plan.take_turns, **options)


def _is_out_of_memory(error: BaseException) -> bool:
    cause = error.cause if isinstance(error, DistillationFailed) else error
    return isinstance(cause, torch.OutOfMemoryError)
