"""The second world for the process: its prompts, their plans, and pictures made stroke by stroke."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from dual_process.core.errors import ProcessError
from dual_process.demo import strokes
from dual_process.demo.strokes.captions import caption, parse_prompt
from dual_process.demo.strokes.compositions import CATEGORIES, all_wanted, shows, things_there, wanted_prompts
from dual_process.demo.strokes.process import (
    SETTINGS,
    OracleThinker,
    StrokesThinker,
    TaughtThinker,
    is_true,
    load_painter,
    load_process_critic,
    placed,
    plan_of,
    planned,
)
from dual_process.demo.strokes.reader import read_scenes
from dual_process.demo.strokes.training import process as lesson
from dual_process.demo.strokes.training.trajectories import flawed, training_prompts
from dual_process.demo.strokes.world import build_scenes, random_uniforms, render
from dual_process.demo.training.common import Run
from dual_process.demo.training.export import export_adapter
from dual_process.distillation import Recipe, distill
from dual_process.process import Fact, Stroke, paint, step_lesson
from dual_process.process.states import BY_CRITIC, BY_RULES


def drawn(prompts, seed=3):
    """Perfect pictures of prompts."""
    words = [placed(parse_prompt(prompt)) for prompt in prompts]
    return render(build_scenes(words, random_uniforms(len(words), torch.Generator().manual_seed(seed))))


@pytest.fixture(scope="module")
def thinker():
    return StrokesThinker(strokes.load()[1])


@pytest.fixture(scope="module")
def taught():
    return TaughtThinker(load_process_critic())


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_perfect_picture_shows_its_prompt_and_holds_its_plan_and_another_prompts_does_not(category):
    wanted = wanted_prompts(category, 12)
    reading = read_scenes(drawn([one.prompt for one in wanted]))
    assert sum(shows(reading, wanted)) >= 11  # a scene in a hundred is misread
    others = [*wanted[1:], wanted[0]]
    different = [a.prompt != b.prompt for a, b in zip(wanted, others, strict=True)]
    fooled = [there and apart for there, apart in zip(shows(reading, others), different, strict=True)]
    assert sum(fooled) <= 3  # a scene of a house by day may happen to be one of dusk, too
    for number, one in enumerate(wanted):
        there, time = things_there(reading, number), ("day", "dusk", "night")[int(reading.time[number])]
        plan = plan_of(one.prompt)
        assert all(stroke.region is not None for stroke in plan.strokes)
        if shows(reading, [*wanted])[number]:
            assert all(is_true(f.question, there, time) == (f.answer == "Yes") for f in plan.facts), one.prompt


def test_what_is_wrong_with_a_picture_is_seen():
    plan = plan_of("two houses and a blue ball far left by night")
    assert [fact.question for fact in plan.facts][-2:] == ["Are there two houses in the image?", "Is it night?"]
    oracle = OracleThinker()
    assert oracle.read(drawn(["two houses and a blue ball far left by night"]), plan.facts) == [1.0] * len(plan.facts)
    less = oracle.read(drawn(["a house and a blue ball far left by day"]), plan.facts)
    assert less[-2:] == [0.0, 0.0]
    ordered = plan_of("a house right of a blue tree")
    assert ordered.facts[-1].question == "Is the white house right of the blue tree?"
    assert oracle.read(drawn(["a blue tree left of a house"]), ordered.facts)[-1] == 1.0
    assert oracle.read(drawn(["a house left of a blue tree"]), ordered.facts)[-1] == 0.0


def test_prompts_that_this_world_cannot_paint_are_refused():
    with pytest.raises(ProcessError, match="Expected a prompt of this world"):
        plan_of("a portrait of a queen")
    with pytest.raises(ProcessError, match="two objects at one place, far left"):
        plan_of("a house far left and a tree far left")
    with pytest.raises(ProcessError, match="got ' '"):
        plan_of(" ")


def test_a_step_that_conflicts_with_the_prompt_is_corrected(thinker):
    plan = plan_of("a blue house far left and a tree near right")
    assert thinker.conflict(plan.strokes[0], "", plan.prompt) == "add a blue house far left"
    wrong = Stroke("s1", "add", "add a green ball far left")
    assert thinker.conflict(wrong, "", plan.prompt) == "add a blue house far left"


def test_the_critic_reads_facts_and_mends_what_is_wrong_at_the_place_that_fails(thinker):
    plan = plan_of("a blue house far left and a tree near right")
    wrong = drawn(["a yellow house far left and a tree near right"])
    p = thinker.read(wrong, plan.facts)
    assert p[0] < 0.3
    assert p[1] > 0.7
    text, instruction = thinker.reflect(wrong, plan.facts[:1], ["add a blue house far left"], plan.prompt)
    assert "blue house far left" in text
    assert instruction == "make the house far left blue"
    assert thinker.reflect(wrong, plan.facts[1:], ["add a tree near right"], plan.prompt)[1] == "add a tree near right"


def test_compositions_that_one_pass_misses_come_out_stroke_by_stroke(thinker):
    painter = load_painter()
    wanted = wanted_prompts("four objects", 6)
    once = shows(read_scenes(torch.cat([painter.draft(one.prompt, 5).picture for one in wanted])), wanted)
    made = [paint(one.prompt, painter, thinker, SETTINGS, seed=5) for one in wanted]
    right = shows(read_scenes(torch.cat([painting.picture for painting in made])), wanted)
    assert sum(once) <= 3
    assert sum(right) >= 5
    assert all(painting.trajectory.passes <= 6 for painting in made)
    before, after = (made[0].canvases[step.picture].latent for step in made[0].trajectory.steps[:2])
    region = made[0].trajectory.plan.strokes[0].region
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[round(region.top * 16) : round(region.bottom * 16), round(region.left * 16) : round(region.right * 16)] = 1
    assert torch.equal(before[..., ~inside], after[..., ~inside])
    assert not torch.equal(before, after)
    again = paint(wanted[0].prompt, painter, thinker, SETTINGS, seed=5)
    assert again.trajectory.to_json() == made[0].trajectory.to_json()
    assert replace(again.trajectory, seed=6) != made[0].trajectory


def test_an_editor_learns_its_strokes_beside_the_canvases_that_it_is_shown(thinker):
    painting = paint("a blue house far left and a tree near right", load_painter(), thinker, SETTINGS, seed=5)
    data, canvases = step_lesson([painting], target_weight=10.0)
    recipe = Recipe.from_dict({**data, "train_steps": 2, "num_inference_steps": 1, "learning_rate": 1e-4})
    assert recipe.prompts == ("add a blue house far left", "add a tree near right")
    generator, critic = strokes.load(recipe.prompts)
    generator.show_references([canvas.latent for canvas in canvases])
    result = distill(generator, critic, recipe)
    distances = [report.penalties["targets"] for report in result.history]
    assert max(distances) < 2e-3  # beside the canvas its rest is kept; without it there is another field
    generator.show_references(None)
    assert distill(generator, critic, recipe).history[0].penalties["targets"] > 5e-3


def test_the_taught_critic_plans_prompts_that_it_has_not_seen(taught):
    wanted = [one for category in CATEGORIES for one in wanted_prompts(category, 3)]
    plans = [taught.plan(one.prompt) for one in wanted]
    assert sum(plan.source == BY_CRITIC for plan in plans) >= 16
    described = [caption(placed(parse_prompt(one.prompt))) for one in wanted]
    right = [plan.description == text for plan, text in zip(plans, described, strict=True) if plan.source == BY_CRITIC]
    assert sum(right) >= 16
    same = [replace(plan, source=BY_RULES) == plan_of(plan.prompt) for plan in plans if plan.source == BY_CRITIC]
    assert sum(same) == sum(right)


@pytest.mark.parametrize(
    "reply",
    [
        *("", "a house", "a blue house near left", "a blue house near left and a tree near left"),
        *("a blue house near left and a ball near right", "a blue house near left and a tree near right by night"),
        "a blue house near right and a tree near left",
    ],
)
def test_rules_plan_where_what_the_critic_wrote_is_not_the_prompt(taught, monkeypatch, caplog, reply):
    prompt = "a blue house left of a tree"
    monkeypatch.setattr(TaughtThinker, "describe", lambda *_: reply)
    assert TaughtThinker(taught.critic).plan(prompt) == plan_of(prompt)
    assert plan_of(prompt).source == BY_RULES
    assert "rules did" in caplog.text
    monkeypatch.setattr(TaughtThinker, "describe", lambda *_: "a blue house far left and a tree near right")
    plan = TaughtThinker(taught.critic).plan(prompt)
    assert (plan.source, plan.strokes[0].instruction) == (BY_CRITIC, "add a blue house far left")


def test_the_taught_critic_sees_conflicts_and_lets_pass_what_fits(taught):
    prompt = "a blue house far left and a tree near right by dusk"
    strokes = {"add a blue house far left": True, "add a tree near right": True, "add a green ball far left": False}
    assert {text: taught.fits(text, prompt) for text in strokes} == strokes
    wrong = Stroke("s1", "add", "add a green ball far left")
    assert taught.conflict(wrong, "", prompt) == "add a blue house far left"
    other = Stroke("s1", "remove", "remove the ball far left")
    assert taught.conflict(other, "", prompt) == other.instruction


def test_the_taught_critic_takes_no_ball_for_its_twin(thinker, taught):
    pictures = drawn(["a blue ball near left and a blue ball near right"] * 4)
    names = ("far left", "near left", "near middle", "near right")
    facts = [Fact(place, f"Is there a blue ball {place} in the image?") for place in names]
    read = torch.tensor([taught.read(picture[None], facts) for picture in pictures])
    assert read[:, ::2].max() < 0.1
    assert read[:, 1::2].mean() > 0.7


def test_what_the_critic_says_of_overlays_is_nearly_as_before(thinker, taught):
    from dual_process.demo.strokes import controls

    pictures = drawn(["a blue house and a tree by day"] * 12)
    for control in (controls.line_weight_control(), controls.depth_control("left"), controls.composition_control()):
        (question, *_) = control.asked
        with torch.no_grad():
            shown = question.overlay.apply(pictures)
            before, after = (one.critic.log_likelihood(shown, [question]).exp() for one in (thinker, taught))
        assert (before - after).abs().mean() < 0.2


def test_trajectories_to_learn_from_are_of_other_prompts_and_of_strokes_that_go_wrong():
    draw, random, held_out = training_prompts(), np.random.default_rng(0), {one.prompt for one in all_wanted()}
    assert not held_out & {draw(random) for _ in range(500)}
    plan, wrong = plan_of("a blue house far left and two balls"), 0
    for _ in range(40):
        made = flawed(plan, random)
        assert [fact.question for fact in made.facts] == [fact.question for fact in plan.facts]
        wrong += {stroke.instruction for stroke in made.strokes} != {stroke.instruction for stroke in plan.strokes}
        asked = [lesson.drawn_step(plan.prompt, random) for _ in range(4)]
        assert all(fits == (parse_prompt(text).things[0] in planned(parse_prompt(plan.prompt))) for text, fits in asked)
    assert wrong >= 25


def test_the_lesson_runs_from_end_to_end_and_goes_on(tmp_path: Path):
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(strokes.WEIGHTS / "pipeline", subfolder="vae", torch_dtype=torch.float32)
    run = Run(tmp_path, effort=0.001)
    model = lesson.train_process(run, strokes.WEIGHTS, vae)
    assert isinstance(model, PeftModel)
    assert len(list(tmp_path.glob("trajectories/*/trajectory.json"))) == 2
    again = lesson.train_process(run, strokes.WEIGHTS, vae)  # from its checkpoint, without a step
    assert all(torch.equal(p, again.state_dict()[name]) for name, p in model.state_dict().items())
    export_adapter(tmp_path / "process", model)
    (tmp_path / "critic").symlink_to(strokes.WEIGHTS / "critic")
    critic = load_process_critic(tmp_path)
    texts = (lesson.FITS.format("add a tree near right", "two balls"), lesson.PLAN.format("a blue house by night"))
    assert [critic.unknown_words(text) for text in texts] == [[], []]
