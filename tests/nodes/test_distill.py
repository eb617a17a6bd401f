"""Distill LoRA at work in one process, on the demo models, in inference mode."""

from __future__ import annotations

import json

import pytest
import torch

pytestmark = pytest.mark.comfyui
TEXT = "a day sky over the sea\n# a comment\n\na night sky over the sand with a tree"
HELD_OUT = "the sea under a sunset sky\nthe grass under a night sky with a ball"


@pytest.fixture
def prompts(run, demo_models):
    return run("TrainingPrompts", clip=demo_models[1], text=TEXT, held_out=HELD_OUT)[0]


def defaults(node):
    """Every widget as the frontend fills it in."""
    from comfy_api.latest import io

    widgets = [i for i in node.GET_SCHEMA().inputs if isinstance(i, io.WidgetInput)]
    return {i.id: i.options[0] if i.default is None else i.default for i in widgets}


@pytest.fixture
def teach(run, nodes, demo_models, loss, prompts):
    """Runs the node with its defaults, a short training, and changes."""
    widgets = defaults(nodes["DualProcessDistill"])
    short = {"train_steps": 3, "batch_size": 2, "rank": 4, "anchor_pool": 4}

    def execute(**changes):
        inputs = {"model": demo_models[0], "vae": demo_models[2], "prompts": prompts, "loss": loss}
        return run("Distill", **{**inputs, **widgets, **short, **changes})

    return execute


def test_what_comes_out(teach):
    lora, comparison, before, after, verdict, losses = teach().args
    assert before.shape == after.shape == (4, 112, 112, 3)  # two held-out prompts, two noises each
    assert not torch.equal(before, after)
    assert comparison.shape[0] == 1
    assert len(losses["loss"]) == 3
    assert verdict.startswith(("LEARNED", "NOT LEARNED", "HACKED"))
    recipe = json.loads(lora.metadata["dual_process.recipe"])
    assert recipe["prompts"] == ["a day sky over the sea", "a night sky over the sand with a tree"]
    assert recipe["held_out"] == HELD_OUT.splitlines()
