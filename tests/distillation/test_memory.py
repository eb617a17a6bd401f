"""Plans of memory: what they are expected to come to, which one is chosen, and what follows when memory runs out."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from fakes import FakeCritic, FakeGenerator
from fakes import recipe as tiny_run

from dual_process.core.sizes import ModelSize
from dual_process.distillation import DistillationFailed, Question, distill
from dual_process.distillation.fallback import distill_by_plan
from dual_process.distillation.memory import (
    CONTEXT,
    OVERHEAD,
    PLANS,
    Sizes,
    TooSmall,
    choose,
    expect,
    fitting,
    sizes_of,
    thriftier,
)

GB = 10**9
NETWORK = ModelSize(24 * GB, 2 * GB, 3 * GB + GB // 4, 8 * GB, GB, GB // 4, 0, 2e13)
DECODER = ModelSize(GB, GB, 2 * GB, 3 * GB, GB // 2, GB, 0, 2e12)
CRITIC = ModelSize(16 * GB, 2 * GB, 2 * GB + 3 * GB // 8, 4 * GB, GB // 4, GB // 8, 0, 7e12)
SIZES = Sizes(NETWORK, DECODER, [CRITIC], lora=GB // 4)
BY_NAME = {plan.name: plan for plan in PLANS}


def held(name, sizes=SIZES):
    """GB without what CUDA and its allocator take, and when."""
    found = expect(BY_NAME[name], sizes)
    return round((found.peak - CONTEXT) / (1 + OVERHEAD) / GB, 3), found.phase


def test_a_peak_is_what_is_there_while_each_part_works():
    assert held("resident") == (24 + 1 + 16 + 8 + 3 + 4 + 0.75, "critic")
    assert held("turns") == (24 + 1 + 0.25 + 1.0, "network")  # its blocks' inputs, one block, the LoRA four times
    assert held("all streamed") == (1 + 0.5 + 2 + 0.25 + 0.125 + 0.75, "critic")


def test_what_is_moved_and_computed():
    assert expect(BY_NAME["resident"], SIZES).moved == 0
    assert expect(BY_NAME["turns"], SIZES).moved == (2 * 24 + 2 * 1 + 16) * GB
    streamed = expect(BY_NAME["all streamed"], replace(SIZES, passes=2))
    assert streamed.moved == ((2 + 2) * 24 + 2 * 1 + 2 * 16) * GB
    assert streamed.flops == pytest.approx((3 + 2) * 2e13 + 3 * 2e12 + 3 * 7e12)
    assert streamed.seconds(bandwidth=10e9, speed=1e13) == pytest.approx(13.0 + 12.7)


@pytest.mark.parametrize(("wordings", "texts"), [("sampled", ["longer"]), ("averaged", ["a", "longer", "b"])])
def test_what_a_step_asks_at_most_counts(wordings, texts):
    heard = []
    critic = SimpleNamespace(size=lambda height, width, asked, samples, bits: heard.extend(asked) or CRITIC)
    generator = SimpleNamespace(sizes=lambda *_: (NETWORK, DECODER, 0), pixels=(8, 8), num_inference_steps=1)
    question = Question("a", paraphrases=("longer", "b"))
    sizes_of(generator, {"default": critic}, tiny_run(question, wordings=wordings))
    assert [one.text for one in heard] == texts


def test_the_fastest_plan_that_fits_is_chosen():
    assert choose(SIZES, 80 * GB).plan.name == "resident"
    names = [choose(SIZES, free * GB).plan.name for free in (55, 48, 32, 24, 6)]
    assert names[0] == "generator checkpointed"
    assert names[-1] == "all streamed"
    for free in (80, 48, 24, 6):
        found = fitting(SIZES, free * GB)
        assert found
        assert all(e.peak <= free * GB for e in found)
        assert [e.seconds() for e in found] == sorted(e.seconds() for e in found)


def test_a_card_too_small_is_told_what_is_missing():
    least = expect(BY_NAME["all streamed"], SIZES).peak
    with pytest.raises(TooSmall, match=rf"at least {least / GB:.1f} .* 3.0 GB: {least / GB - 3:.1f} GB are missing"):
        choose(SIZES, 3 * GB)


def test_each_next_plan_needs_less_until_there_is_none():
    expected, seen = choose(SIZES, 80 * GB), []
    while expected is not None:
        seen.append(expected.peak)
        expected = thriftier(expected, SIZES)
    assert len(seen) > 3
    assert all(later < 0.95 * sooner for sooner, later in pairwise(seen))
    assert seen[-1] == expect(BY_NAME["all streamed"], SIZES).peak


class Forgetful(FakeGenerator):
    """Whose memory runs out, at these estimates."""

    def __init__(self, *at):
        super().__init__()
        self.at = at

    def estimate(self, draw, needs=("image", "prediction")):
        if self.estimates in self.at:
            self.estimates += 1
            raise torch.OutOfMemoryError("out of memory")
        return super().estimate(draw, needs)


def by_plan(generator, arrange=lambda plan: None):
    return distill_by_plan(generator, FakeCritic(), tiny_run(), choose(SIZES, 80 * GB), SIZES, arrange)


@pytest.mark.parametrize("at", [0, 2])
def test_when_memory_runs_out_the_run_goes_on_by_a_thriftier_plan(at, caplog):
    plans = []
    with caplog.at_level(logging.WARNING):
        result = by_plan(Forgetful(at), lambda plan: plans.append(plan.name))
    whole = distill(FakeGenerator(), FakeCritic(), tiny_run())
    assert plans == ["resident", "generator checkpointed"]
    assert f"Memory ran out after step {at} with the plan 'resident'" in caplog.text
    assert [r.loss for r in result.history] == [r.loss for r in whole.history]


def test_a_thriftier_plan_is_looked_for_among_those_that_are_possible():
    parts = Forgetful(0), FakeCritic(), tiny_run(), choose(SIZES, 80 * GB), SIZES
    with pytest.raises(torch.OutOfMemoryError):
        distill_by_plan(*parts, lambda plan: None, plans=PLANS[:1])


def test_the_second_time_the_lora_so_far_is_kept():
    with pytest.raises(DistillationFailed) as caught:
        by_plan(Forgetful(2, 4))
    assert caught.value.result.steps == 3


def test_other_failures_are_not_tried_again():
    generator = Forgetful()
    generator.poison_seed_at = 1
    with pytest.raises(Exception, match="not a finite number"):
        by_plan(generator)
