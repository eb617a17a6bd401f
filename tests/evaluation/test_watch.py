"""Watching a run: looks at held-out pictures that do not disturb it, the best LoRA, and giving up."""

from __future__ import annotations

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe

from dual_process.distillation import Question, distill
from dual_process.evaluation import watch as module
from dual_process.evaluation.held_out import Examiner, HeldOut, Look
from dual_process.evaluation.watch import Watch, held_out_score

QUESTION = Question("a")


def watched(scores=None, steps=8, monkeypatch=None, **settings):
    if scores is not None:
        values = iter(scores)
        monkeypatch.setattr(module, "held_out_score", lambda look: next(values))
    generator, critics, settings_of = FakeGenerator(), {"default": FakeCritic()}, recipe(QUESTION, train_steps=steps)
    examiner = Examiner(generator, critics, settings_of, HeldOut((0, 1), (7, 8)))
    examiner.look(0.0)
    seen = []
    watch = Watch(examiner, on_glance=seen.append, **settings)
    return distill(generator, critics, settings_of, observers=[watch]), watch, seen


def same(one, other):
    a, b = one.lora_state_dict(), other.lora_state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_looks_every_few_steps_and_at_the_end():
    result, watch, seen = watched(every=3)
    assert [glance.step for glance in seen] == [3, 6, 8]
    assert [step for step, _ in watch.scores] == [3, 6, 8]
    assert result.stop_reason == "completed"
    plain = distill(FakeGenerator(), FakeCritic(), result.recipe)
    assert same(result, plain)


def test_the_best_lora_is_kept_and_can_be_given(monkeypatch):
    result, watch, _ = watched([0.1, 0.9, 0.2, 0.3], monkeypatch=monkeypatch, every=2)
    assert watch.best.steps == 4
    best = result.at(watch.best)
    short = distill(FakeGenerator(), FakeCritic(), recipe(QUESTION, train_steps=4))
    assert best.steps == 4
    assert same(best, short)
    last = result.checkpoint.tensors
    assert any(not torch.equal(last[name], tensor) for name, tensor in best.checkpoint.tensors.items())


@pytest.mark.parametrize(("patience", "steps"), [(2, 4), (0, 8)])
def test_patience(monkeypatch, patience, steps):
    scores = [0.5, 0.6, 0.4, 0.6, 0.9, 0.9, 0.9, 0.9]
    result, _, _ = watched(scores, monkeypatch=monkeypatch, every=1, patience=patience)
    assert (result.steps, result.stop_reason) == (steps, "early_stop" if patience else "completed")


def test_the_score_falls_where_any_probability_falls():
    def score(**measures):
        return held_out_score(Look(torch.zeros(0), torch.zeros(0), measures))

    assert score(p_answer=0.81, p_keep=0.25, contrast=3.0) == pytest.approx(0.45)
    assert score(p_answer=0.81) == pytest.approx(0.81)
    assert score(p_answer=0.0, p_keep=1.0, p_prompt_fits=1.0) < 0.011
