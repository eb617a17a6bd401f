"""Anchors: chosen by what a plain computation chooses, penalised as written down here, kept over a resume."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe
from torch.nn import functional as F

from dual_process.distillation import Anchors, Question, StopRequested, distill
from dual_process.distillation.anchors import Anchor, choose, draw_anchors, find_anchors, pool
from dual_process.distillation.draws import draw_batch

QUESTIONS = (Question("a"), Question("b", prompts=(1,)), Question("c", answer="as before", role="keep"))


def settings(**changes):
    anchors = Anchors(pool=7, threshold=0.09, least=2)
    return recipe(*QUESTIONS, **{"train_steps": 5, "penalties": {"anchors": 0.7}, "anchors": anchors, **changes})


def found(plan=None, **kwargs):
    generator, plan = FakeGenerator(), plan or settings()
    generator.add_lora(2, 4.0, 0)
    return find_anchors(generator, {"default": FakeCritic()}, plan, 2, **kwargs)


def p(text, image):
    return float(F.logsigmoid(image.flatten() @ FakeCritic.direction(text)).exp())


def test_the_pool_goes_round_the_prompts_with_fresh_noises():
    pairs = pool(settings(), 2)
    assert [prompt for prompt, _ in pairs] == [0, 1, 0, 1, 0, 1, 0]
    assert len({seed for _, seed in pairs}) == 7
    assert pairs == pool(settings(train_steps=9), 2) != pool(settings(seed=1), 2)


def test_those_that_are_right_already_are_chosen():
    generator = FakeGenerator()
    generator.add_lora(2, 4.0, 0)
    rated = {}
    for prompt, seed in pool(settings(), 2):
        image = generator.sample([prompt], [seed], lora_scale=0.0)
        rated[prompt, seed] = min(p("a", image), p("b", image)) if prompt == 1 else p("a", image)
    best = sorted(rated, key=lambda pair: -rated[pair])
    right = [pair for pair in best if rated[pair] > 0.09]
    assert 2 < len(right) < 7
    anchors = found()
    assert [(a.prompt_index, a.noise_seed) for a in anchors] == right
    assert [a.p_answer for a in anchors] == pytest.approx([rated[pair] for pair in right], rel=1e-5)
    few = found(settings(anchors=Anchors(pool=7, threshold=1.0, least=2)))
    assert [(a.prompt_index, a.noise_seed) for a in few] == best[:2]


def test_fewer_pictures_than_asked_for_are_all_anchors():
    rated = [Anchor(0, seed, seed / 10) for seed in range(3)]
    assert len(choose(rated, settings(anchors=Anchors(pool=3, threshold=1.0, least=16)))) == 3


def test_making_the_pool_shows_progress_and_can_be_stopped():
    seen = []
    found(on_anchor=lambda *counts: seen.append(counts))
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]
    with pytest.raises(StopRequested):
        found(should_stop=lambda: True)
    result = distill(FakeGenerator(), FakeCritic(), settings(), should_stop=lambda: True)
    assert (result.stop_reason, result.steps) == ("interrupted", 0)


def test_steps_equal_a_plain_loop():
    plan = settings()
    anchors = found()
    generator = FakeGenerator()
    generator.add_lora(plan.rank, plan.lora_alpha, plan.seed)
    parameters = [generator.a, generator.b]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0)

    def velocities(draw):
        noise = [torch.randn(6, generator=torch.Generator().manual_seed(s)) for s in draw.noise_seeds]
        z = torch.stack(noise) + generator.shift[list(draw.prompt_indices)]
        base = 0.25 * z @ generator.weight.T.detach()
        return base + 0.25 * z @ (plan.lora_alpha / plan.rank * generator.b @ generator.a).T, base

    losses, distances = [], []
    for step in range(plan.train_steps):
        draw = draw_batch(plan, step, 0, 2, 3)
        beside = draw_anchors(plan, step, 0, anchors, draw, 3)
        (velocity, base), (moved, still) = velocities(draw), velocities(beside)
        visible, before = ((v + 0.5).clamp(0, 1) for v in (velocity, base))
        a, b, c = (visible @ FakeCritic.direction(text) for text in "abc")
        # FakeCritic knows no answers: "Yes" and "No" score alike, so the first choice is the one before.
        assert before.shape == visible.shape
        rows = [
            (F.logsigmoid(a[i]) + F.logsigmoid(c[i]) + (F.logsigmoid(b[i]) if prompt == 1 else 0)) / (2 + prompt)
            for i, prompt in enumerate(draw.prompt_indices)
        ]
        loss, distance = -torch.stack(rows).mean(), (moved - still).square().mean()
        optimizer.zero_grad()
        (loss + 0.7 * distance).backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        distances.append(distance.item())
    history = distill(FakeGenerator(), FakeCritic(), plan).history
    assert [r.loss for r in history] == pytest.approx(losses, rel=1e-5)
    assert [r.penalties["anchors"] for r in history] == pytest.approx(distances, rel=1e-4, abs=1e-9)
    assert history[-1].penalties["anchors"] > 0


def test_anchors_are_rolled_out_by_the_base_model_at_the_judged_noise_level():
    plan = settings(batch_size=4)
    anchors = found()
    judged = draw_batch(plan, 3, 0, 2, 3)
    beside = draw_anchors(plan, 3, 0, anchors, judged, 3)
    assert beside.base_trajectory
    assert not judged.base_trajectory
    assert beside.sampler_steps == judged.sampler_steps
    assert {*zip(beside.prompt_indices, beside.noise_seeds, strict=True)} <= {
        (a.prompt_index, a.noise_seed) for a in anchors
    }
    loose = settings(batch_size=4, anchors=replace(plan.anchors, noise_level="random"))
    steps = {s for step in range(30) for s in draw_anchors(loose, step, 0, anchors, judged, 3).sampler_steps}
    assert steps == {0, 1, 2}
    # A sample's anchor does not depend on how samples are batched.
    halves = [draw_anchors(replace(plan, batch_size=2), 3, first, anchors, judged, 3).noise_seeds for first in (0, 2)]
    assert halves[0] + halves[1] == beside.noise_seeds


def test_resume_is_bit_exact_and_makes_no_second_pool(tmp_path):
    whole = distill(FakeGenerator(), FakeCritic(), settings())
    seen = []
    part = distill(FakeGenerator(), FakeCritic(), settings(), lambda r, _: seen.append(r), lambda: len(seen) >= 3)
    path = part.save_checkpoint(tmp_path / "c.safetensors")
    generator, pictures = FakeGenerator(), []
    sample = generator.sample
    generator.sample = lambda *args, **kwargs: pictures.append(1) or sample(*args, **kwargs)
    resumed = distill(generator, FakeCritic(), settings(), resume_from=path)
    ours, theirs = resumed.lora_state_dict(), whole.lora_state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not pictures
    assert resumed.checkpoint.anchors == whole.checkpoint.anchors


def test_the_metadata_holds_the_pairs():
    written = json.loads(distill(FakeGenerator(), FakeCritic(), settings()).metadata("x")["dual_process.anchors"])
    assert [(row["prompt_index"], row["noise_seed"]) for row in written] == [
        (a.prompt_index, a.noise_seed) for a in found()
    ]
    assert "dual_process.anchors" not in distill(FakeGenerator(), FakeCritic(), recipe()).metadata("x")


def test_taking_turns_gives_the_same_lora():
    one, other = (distill(FakeGenerator(), FakeCritic(), settings(), take_turns=turns) for turns in (False, True))
    assert torch.equal(one.lora_state_dict()["layer.lora_B"], other.lora_state_dict()["layer.lora_B"])
