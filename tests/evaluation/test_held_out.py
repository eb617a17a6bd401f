"""Verdicts where no truth is known: what is measured, and every outcome."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe
from torch.nn import functional as F

from dual_process.distillation import Question, distill
from dual_process.evaluation.held_out import Examiner, HeldOut, held_out_pairs, judge_without_truth

MEASURES = {
    "p_answer": 0.2,
    "p_answer_other_size": 0.2,
    "p_keep": 0.9,
    "p_prompt_fits": 0.8,
    "p_answer_referee": 0.3,
    "brightness": 0.5,
    "contrast": 0.2,
    "colorfulness": 0.3,
    "clipped_share": 0.05,
    "high_frequency": 0.01,
    "high_frequency_other_size": 0.01,
    "diversity": 0.2,
}
WON = {"p_answer": 0.8, "p_answer_referee": 0.7}


@pytest.mark.parametrize(
    ("changes", "outcome", "named"),
    [
        ({}, "not learned", "0.20 to 0.20"),
        ({"p_answer": 0.35}, "not learned", "0.20 to 0.35"),
        (WON, "learned", "0.20 to 0.80"),
        ({**WON, "p_keep": 0.7}, "damaged", "what the keep questions ask (P(keep) went from 0.90 to 0.70)"),
        ({**WON, "p_prompt_fits": 0.5}, "damaged", "what the prompt says"),
        ({**WON, "high_frequency": 0.002}, "damaged", "sharp edges (high frequency became 0.20 of what it was)"),
        ({**WON, "high_frequency": 0.03}, "damaged", "smooth areas"),
        ({**WON, "diversity": 0.02}, "damaged", "variety between seeds"),
        ({**WON, "high_frequency_other_size": 0.05}, "damaged", "smooth areas at another size"),
        ({**WON, "diversity": 0.008}, "hacked", "all variety"),
        ({**WON, "contrast": 0.02}, "hacked", "all contrast"),
        ({**WON, "clipped_share": 0.5}, "hacked", "unclipped pixels"),
        ({**WON, "p_answer_referee": 0.35}, "hacked", "second critic"),
    ],
)
def test_outcomes(changes, outcome, named):
    verdict = judge_without_truth(MEASURES, {**MEASURES, **changes})
    assert verdict.outcome == outcome
    assert named in verdict.text
    assert bool(verdict.lost) == (outcome in ("damaged", "hacked"))


def test_a_small_rise_to_certainty_is_learned():
    before = {**MEASURES, "p_answer": 0.85, "p_answer_referee": 0.8}
    assert judge_without_truth(before, {**before, "p_answer": 0.95, "p_answer_referee": 0.91}).outcome == "learned"


def test_a_critic_that_never_saw_the_thing_cannot_tell_that_it_is_lost():
    before = {**MEASURES, "p_prompt_fits": 0.4, "p_keep": 0.3}
    assert judge_without_truth(before, {**before, **WON, "p_prompt_fits": 0.0, "p_keep": 0.0}).outcome == "learned"


def test_pairs_are_held_out_prompts_where_there_are_some():
    generator = FakeGenerator(("sea", "sand", "grass"))
    pairs = held_out_pairs(generator, recipe(prompts=("sea", "sand"), held_out=("grass",)))
    assert pairs.indices == (2, 2)
    assert len({*pairs.seeds}) == 2
    assert held_out_pairs(generator, recipe()).indices == (0, 0, 1, 1, 2, 2)


def test_every_held_out_prompt_is_looked_at():
    words = tuple(f"prompt {number}" for number in range(45))
    few = held_out_pairs(FakeGenerator(words[:9]), recipe(prompts=words[:3], held_out=words[3:9]))
    assert few.indices == (3, 3, 4, 4, 5, 5, 6, 6, 7, 8)
    assert len({*few.seeds}) == len(few)
    many = held_out_pairs(FakeGenerator(words), recipe(prompts=words[:5], held_out=words[5:]))
    assert {*many.indices} == {*range(5, 37)}
    none = held_out_pairs(FakeGenerator(words), recipe(prompts=words))
    assert {*none.indices} == {0, 1, 2, 3}


def test_measures_by_hand():
    generator, critic, referee = FakeGenerator(), FakeCritic(), FakeCritic()
    keep = Question("b", role="keep", prompts=(1,))
    plan = recipe(Question("a"), keep, Question("c", answer="as before", role="keep"))
    pairs = HeldOut((0, 1, 1), (5, 6, 7))
    generator.add_lora(2, 4.0, 0)
    seen = []
    examiner = Examiner(
        generator, {"default": critic}, plan, pairs, referee, on_picture=lambda *counts: seen.append(counts)
    )
    look = examiner.look(0.0)
    images = generator.sample([0, 1, 1], [5, 6, 7], lora_scale=0.0)
    torch.testing.assert_close(look.images, images)

    def p(text, rows):
        return F.logsigmoid(images[rows].flatten(1) @ FakeCritic.direction(text)).exp()

    assert look.measures["p_answer"] == pytest.approx(float(p("a", [0, 1, 2]).mean()), rel=1e-5)
    assert look.measures["p_answer_referee"] == pytest.approx(look.measures["p_answer"])
    kept = torch.cat([p("b", [1, 2]), p("c", [0, 1, 2])])
    assert look.measures["p_keep"] == pytest.approx(float(kept.mean()), rel=1e-5)
    fits = [
        p(f'Does this figure show "{prompt}"? Please answer yes or no.', [row])
        for row, prompt in enumerate(("sea", "sand", "sand"))
    ]
    assert look.measures["p_prompt_fits"] == pytest.approx(float(torch.cat(fits).mean()), rel=1e-5)
    assert look.measures["diversity"] == pytest.approx(float((images[1] - images[2]).square().mean().sqrt()), rel=1e-5)
    assert look.measures["brightness"] == pytest.approx(float(images.mean()))
    assert seen[:3] == [(1, 3), (2, 3), (3, 3)]


def test_before_and_after_a_run():
    generator, critics = FakeGenerator(), {"default": FakeCritic()}
    plan = recipe(Question("a"), train_steps=60, learning_rate=0.05)
    examiner = Examiner(generator, critics, plan)
    examiner.look(0.0)
    result = distill(generator, critics, plan)
    found = examiner.compare(examiner.look(1.0))
    written = json.loads(result.metadata("x", found.to_dict())["dual_process.verdict"])
    assert written == json.loads(json.dumps(found.to_dict()))
    assert {*written} == {"outcome", "verdict", "lost", "before", "after"}
    assert written["after"]["p_answer"] > written["before"]["p_answer"] + 0.2
    assert written["outcome"] != "not learned"
    again = examiner.compare(replace(examiner.look(0.0)))
    assert again.verdict.outcome == "not learned"
