"""What a memory plan is expected to take, against the step at full size that benchmarks/full_size.py has counted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import full_size_plans
import pytest
import torch
from accelerate import init_empty_weights
from full_size_models import CRITICS, GENERATORS
from full_size_plans import Part
from full_size_step import OFFLOAD, build_critic, build_generator, texts

import dual_process
from dual_process.distillation import Question
from dual_process.distillation.memory import CONTEXT, OVERHEAD, MemoryPlan, Place, Sizes, expect

ROWS = json.loads((Path(dual_process.__file__).parent / "benchmarks" / "full_size.json").read_text())
GiB = 2**30


@cache
def generator(name, size):
    with init_empty_weights(include_buffers=False):
        return build_generator(GENERATORS[name], size, Part(), torch.bfloat16)


@cache
def critic(name):
    models = CRITICS[name]
    parts = models.parts()
    with init_empty_weights(include_buffers=False):
        return build_critic(models, Part(), torch.bfloat16, parts)


def bits(part):
    return None if part.weights == "bf16" else part.weights


def place(part):
    return Place(OFFLOAD[part.place], part.checkpoints)


def expected(row):
    plan, size = full_size_plans.PLANS[row["plan"]], row["size"]
    network, decoder, lora = generator(row["generator"], size).sizes(1, rank=16, bits=bits(plan.generator))
    asked = [Question(text) for text in texts(row["questions"])]
    judge = critic(row["critic"]).size(size, size, asked, bits=bits(plan.critic))
    arrangement = MemoryPlan(row["plan"], place(plan.generator), place(plan.critic), plan.turns)
    return expect(arrangement, Sizes(network, decoder, [judge], lora))


def name(row):
    return " ".join(str(row[key]) for key in ("generator", "critic", "plan", "size", "questions"))


ON_ONE_CARD = [row for row in ROWS if full_size_plans.PLANS[row["plan"]].cards == 1]


@pytest.mark.parametrize("row", ON_ONE_CARD, ids=name)
def test_a_plan_takes_what_it_is_expected_to(row):
    found = expected(row)
    assert (found.peak - CONTEXT) / (1 + OVERHEAD) / GiB == pytest.approx(row["peak_gib"], rel=0.1)
    assert found.flops / 1e12 == pytest.approx(row["tflop"], rel=0.1)
    assert found.moved / GiB == pytest.approx(row["moved_gib"], rel=0.1, abs=0.01)
