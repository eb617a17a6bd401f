"""What a trajectory teaches, as a recipe's plain data: `distillation.Recipe.from_dict` reads it.

The process is slow and inspects itself, so that there is something to learn from it: its results (one pass is to paint
what many have painted), its strokes (an editor is to change its region, and nothing else), or what failed in it.
Pictures teach by targets, which is space; facts by questions, which is meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ProcessError
from ..core.picture import Picture
from .painting import DRAFT, Painting, outside
from .protocols import Canvas
from .states import HELD, LOST, UNJUDGED, VIOLATED, Fact, Region, Trajectory

TARGET_WEIGHT = 30.0  # of the squared distance to targets, beside the questions' nats


def result_lesson(paintings: Iterable[Painting], target_weight: float = TARGET_WEIGHT) -> dict[str, Any]:
    """One pass is to look like the process's result: prompts, their facts as questions, the results as targets.

    A target belongs to its prompt and to the noise of its draft. Paintings that do not hold everything teach nothing.

    Raises:
        ProcessError: none of them holds everything.
    """
    prompts, facts, targets = list[str](), list[tuple[int, Fact]](), list[dict[str, Any]]()
    seen = set[tuple[str, int]]()
    for painting in paintings:
        trajectory = painting.trajectory
        pair = (trajectory.plan.prompt, draft_seed(trajectory))
        if pair in seen or not holds_everything(trajectory):
            continue
        seen.add(pair)
        if pair[0] not in prompts:
            prompts.append(pair[0])
            facts += [(len(prompts) - 1, fact) for fact in trajectory.plan.facts if fact.id in trajectory.held]
        targets.append(_target(painting.picture, [prompts.index(pair[0])], seeds=[pair[1]]))
    if not prompts:
        raise ProcessError(
            "No trajectory holds everything, so that there is no result to learn. Give it a larger budget, or a plan "
            "that the critic can judge."
        )
    return _recipe(prompts, facts, targets, target_weight)


def step_lesson(
    paintings: Iterable[Painting], target_weight: float = TARGET_WEIGHT
) -> tuple[dict[str, Any], list[Canvas]]:
    """An editor is to do what each stroke says, and nothing else.

    Its facts are asked, and those that were held before; outside its region the canvas before it is the target.

    Attempts at one stroke of one canvas are one prompt, with the instruction of the last. Strokes that failed are among
    them: what they should have done is known all the same.

    Returns:
        The recipe's data, and for each of its prompts the canvas that the editor is to be shown as its reference.

    Raises:
        ProcessError: no stroke with a fact that the critic can judge.
    """
    prompts, facts, targets, references = list[str](), list[tuple[int, Fact]](), list[dict[str, Any]](), list[Canvas]()
    for painting in paintings:
        for before, stroke, instruction, asked in _strokes(painting.trajectory):
            canvas = painting.canvases[before]
            region = next((s.region for s in painting.trajectory.plan.strokes if s.id == stroke), None)
            mask = None if region is None else _outside(region, canvas.picture)
            if mask is not None:
                targets.append(_target(canvas.picture, [len(prompts)], mask=mask))
            facts += [(len(prompts), fact) for fact in asked]
            prompts.append(instruction)
            references.append(canvas)
    if not prompts:
        raise ProcessError("The trajectories have no stroke that the critic can judge: there is nothing to learn.")
    return _recipe(prompts, facts, targets, target_weight), references


def failure_lesson(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """What an inspection found violated or lost, and what the result lacks, as questions on the prompts.

    Raises:
        ProcessError: there are none.
    """
    prompts, facts = list[str](), list[tuple[int, Fact]]()
    for trajectory in trajectories:
        failed = failed_facts(trajectory)
        if failed and trajectory.plan.prompt not in prompts:
            prompts.append(trajectory.plan.prompt)
        facts += [(prompts.index(trajectory.plan.prompt), fact) for fact in failed]
    if not facts:
        raise ProcessError("Nothing failed on the way: there is no question that needs to be learnt.")
    return _recipe(prompts, facts, [], 0.0)


def failed_facts(trajectory: Trajectory) -> list[Fact]:
    """Those that some inspection found violated or lost, or that the result lacks."""
    readings = [reading for step in trajectory.steps for reading in step.reflection.readings]
    failed = {reading.fact for reading in readings if reading.status in (VIOLATED, LOST)}
    if trajectory.steps:
        last = trajectory.steps[trajectory.best].reflection
        failed |= {reading.fact for reading in last.readings if reading.status not in (HELD, UNJUDGED)}
    return [fact for fact in trajectory.plan.facts if fact.id in failed]


def holds_everything(trajectory: Trajectory) -> bool:
    """Whether the best picture holds all facts that can be judged, and there are some."""
    if not trajectory.steps:
        return False
    statuses = {reading.status for reading in trajectory.steps[trajectory.best].reflection.readings}
    return HELD in statuses and statuses <= {HELD, UNJUDGED}


def draft_seed(trajectory: Trajectory) -> int:
    """The noise of the draft from which the best picture came: by this seed one pass makes the same scene."""
    drafts = (step for step in trajectory.steps[trajectory.best :: -1] if step.stroke == DRAFT and step.accepted)
    found = next(drafts, None)
    if found is None:
        raise ProcessError("The trajectory has no draft that was kept, so that its result belongs to no noise.")
    return found.seed


def _strokes(trajectory: Trajectory) -> Iterable[tuple[str, str, str, list[Fact]]]:
    """Of each stroke on each canvas: the canvas's name, the stroke's id, its last instruction, and what is asked."""
    rows: dict[tuple[str, str], tuple[str, list[Fact]]] = {}
    before, held = None, tuple[str, ...]()
    for step in trajectory.steps:
        if before is not None and step.stroke != DRAFT:
            own = {fact.id for fact in trajectory.plan.facts_of(step.stroke)}
            due = own - {*step.reflection.with_status(UNJUDGED)} | {*held}
            asked = [fact for fact in trajectory.plan.facts if fact.id in due]
            if asked:
                rows[before, step.stroke] = (step.ins, asked)
        if step.accepted:
            before, held = step.picture, step.reflection.with_status(HELD)
    return [(*key, *row) for key, row in rows.items()]


def _recipe(
    prompts: Sequence[str], facts: Sequence[tuple[int, Fact]], targets: Sequence[dict[str, Any]], weight: float
) -> dict[str, Any]:
    """Facts (prompt index, fact) as questions: the same one about several prompts is one question."""
    asked: dict[tuple[str, str], list[int]] = {}
    for index, fact in facts:
        asked.setdefault((fact.question, fact.answer), []).append(index)
    questions = [
        {"text": text, "answer": answer, "prompts": list(dict.fromkeys(indices))}
        for (text, answer), indices in asked.items()
    ]
    recipe: dict[str, Any] = {"prompts": list(prompts), "questions": questions}
    return {**recipe, "targets": list(targets), "penalties": {"targets": weight}} if targets else recipe


def _target(picture: Tensor, prompts: list[int], mask: Picture | None = None, **numbers: list[int]) -> dict[str, Any]:
    shown = {} if mask is None else {"mask": mask.to_dict()}
    return {"image": Picture.from_tensor(picture[0]).to_dict(), **shown, "prompts": prompts, **numbers}


def _outside(region: Region, picture: Tensor) -> Picture | None:
    """White outside a region; None where nothing is."""
    kept = outside(region, *picture.shape[-2:])
    return Picture.from_tensor(kept[None].to(torch.float32)) if kept.any() else None
