"""What trajectories teach: recipes that the engine takes, with the pictures, noises and facts that belong to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fake_models import SLOTS, SlotPainter, SlotThinker, picture_of, plan

from dual_process.core.errors import ProcessError
from dual_process.distillation import Recipe
from dual_process.process import Settings, failure_lesson, paint, result_lesson, step_lesson
from dual_process.process.states import UNJUDGED, Reading
from dual_process.process.supervision import draft_seed, holds_everything

PATIENT = Settings(budget=30, restarts=0)


def painted(prompt="things", seed=0, settings=PATIENT, **painter):
    return paint(plan(prompt=prompt), SlotPainter(**painter), SlotThinker(), settings, seed)


def seen(picture):
    """As it comes back from 8 bits."""
    return (picture * 255).round() / 255


def test_results_belong_to_their_prompts_and_drafts():
    first, second, other = painted(seed=1), painted(seed=2), painted("more things", seed=1)
    unfinished = painted(seed=3, settings=Settings(budget=2, restarts=0))
    recipe = Recipe.from_dict(result_lesson([first, unfinished, second, other, first], 5.0))
    assert recipe.prompts == ("things", "more things")
    assert recipe.penalties == {"targets": 5.0}
    assert [(t.prompts, t.seeds) for t in recipe.targets] == [
        ((index,), (painting.trajectory.steps[0].seed,)) for index, painting in ((0, first), (0, second), (1, other))
    ]
    assert all(t.mask is None for t in recipe.targets)
    assert torch.equal(recipe.targets[0].image.tensor(), seen(picture_of({0: 1.0, 1: 1.0, 2: 1.0})[0]))
    # Both prompts ask the same, so that there is one question for each fact.
    assert [(q.text, q.answer, q.prompts) for q in recipe.questions] == [
        (f"Is there a thing in slot {n}?", "Yes", (0, 1)) for n in range(3)
    ]


def test_the_noise_is_that_of_the_draft_that_was_kept():
    settings = Settings(restarts=1, budget=9)
    trajectory = painted(seed=4, settings=settings).trajectory
    drafts = [step for step in trajectory.steps if step.stroke == "draft"]
    assert len(drafts) == 2
    kept = next(step for step in drafts if step.accepted)
    assert draft_seed(trajectory) == kept.seed
    steps = tuple(replace(step, accepted=step.stroke != "draft") for step in trajectory.steps)
    with pytest.raises(ProcessError, match="no draft that was kept"):
        draft_seed(replace(trajectory, steps=steps))


def test_what_the_critic_cannot_judge_is_not_asked():
    painting = painted()
    last = painting.trajectory.steps[-1]
    readings = (Reading("f0", 0.9, UNJUDGED), *last.reflection.readings[1:])
    steps = (*painting.trajectory.steps[:-1], replace(last, reflection=replace(last.reflection, readings=readings)))
    changed = replace(painting, trajectory=replace(painting.trajectory, steps=steps))
    assert holds_everything(changed.trajectory)
    recipe = result_lesson([changed])
    assert [q["text"][-2] for q in recipe["questions"]] == ["1", "2"]


def test_a_stroke_keeps_what_is_outside_its_region_and_what_was_held():
    painting = painted(seed=4, chance=0.4)
    assert any(not step.accepted for step in painting.trajectory.steps)
    data, references = step_lesson([painting])
    recipe = Recipe.from_dict(data)
    done = {step.stroke: step.ins for step in painting.trajectory.steps if step.accepted and step.stroke != "draft"}
    assert recipe.prompts == tuple(done.values())  # attempts at one stroke are one prompt
    kept = [step.picture for step in painting.trajectory.steps if step.accepted][: len(done)]
    for number, (name, target, canvas) in enumerate(zip(kept, recipe.targets, references, strict=True)):
        before = painting.canvases[name]
        assert canvas is before
        assert (target.prompts, target.seeds) == ((number,), None)
        assert torch.equal(target.image.tensor(), seen(before.picture[0]))
        columns = target.mask.tensor()[0].mean(dim=0)
        assert columns.tolist() == [float(column // 4 != number) for column in range(4 * SLOTS)]
    assert [q.prompts for q in recipe.questions] == [(0, 1, 2), (1, 2), (2,)]


def test_a_stroke_without_a_region_is_asked_about_only():
    free = plan(1)
    free = replace(free, strokes=tuple(replace(stroke, region=None) for stroke in free.strokes))
    data, references = step_lesson([paint(free, SlotPainter(), SlotThinker(free), PATIENT)])
    recipe = Recipe.from_dict(data)
    assert (len(recipe.prompts), recipe.targets, recipe.penalties) == (1, (), {})
    assert len(references) == 1


def test_only_what_failed_is_asked_again():
    way = painted(chance=0.0, drafted=(0, 1), settings=Settings(budget=4, restarts=0)).trajectory
    other = painted("more things", settings=Settings(budget=3, restarts=0)).trajectory
    recipe = Recipe.from_dict(failure_lesson([painted("done").trajectory, way, other, way]))
    assert recipe.prompts == ("things", "more things")
    assert [(q.text, q.prompts) for q in recipe.questions] == [("Is there a thing in slot 2?", (0, 1))]
    mended = painted(seed=3, chance=0.4).trajectory
    assert mended.stop_reason == "done"
    failed = {step.stroke for step in mended.steps if not step.accepted}
    assert {f"s{q['text'][-2]}" for q in failure_lesson([mended])["questions"]} == failed


def test_what_teaches_nothing_is_refused():
    with pytest.raises(ProcessError, match="Nothing failed"):
        failure_lesson([painted().trajectory])
    with pytest.raises(ProcessError, match="No trajectory holds everything"):
        result_lesson([painted(settings=Settings(budget=1, restarts=0))])
    with pytest.raises(ProcessError, match="no stroke"):
        step_lesson([painted(drafted=(0, 1, 2))])
