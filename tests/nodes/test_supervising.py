"""Distill Process: trajectories become what Distill LoRA trains on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from fake_models import INFO, SlotPainter, SlotThinker, plan
from test_distill import defaults

from dual_process.process import Canvas, Fact, Plan, Settings, Stroke, paint
from dual_process.process.files import save_painting

pytestmark = pytest.mark.comfyui
PROMPT = "a day sky over the sea with a tree"


class Clip:
    """A CONDITIONING that says what it encodes."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [[torch.zeros(1, 1, 1), {"text": tokens}]]


def slots(prompt="things", seed=0, **painter):
    return paint(plan(prompt=prompt), SlotPainter(**painter), SlotThinker(), Settings(budget=9, restarts=0), seed)


@pytest.fixture
def supervise(run):
    def execute(*paintings, clip=None, critic="critic", **changes):
        trajectories = {f"trajectory{n}": painting for n, painting in enumerate(paintings)}
        settings = {"teach": "results", "target_weight": 30.0, **changes}
        return run("DistillProcess", clip=clip or Clip(), critic=critic, trajectories=trajectories, **settings).args

    return execute


def test_results(supervise, run):
    first, second = slots(), slots("more things", seed=1)
    prompts, loss, report = supervise(first, None, second, held_out="things\nother things", guidance=2.5)
    assert prompts.texts == ("things", "more things")
    assert prompts.held_out_texts == ("other things",)
    said = [c[0][1] for c in (*prompts.conditionings, *prompts.held_out_conditionings)]
    assert said == [{"text": text, "guidance": 2.5} for text in ("things", "more things", "other things")]
    assert [t.seeds for t in loss.targets] == [(p.trajectory.steps[0].seed,) for p in (first, second)]
    assert loss.target_weight == 30.0
    ((critic, questions),) = loss.terms
    assert (critic, [q.prompts for q in questions]) == ("critic", [(0, 1)] * 3)
    assert report == "Trajectories: 2. Prompts: 2. Questions: 3. Pictures to come near to: 2."
    question = run("VLMQuestion", question="Is it?", answer="Yes", weight=1.0)[0]
    more = run("VQALoss", critic="another", questions={"question0": question}, loss=loss)[0]
    assert (more.targets, len(more.terms)) == (loss.targets, 2)
    again = supervise(first, loss=more)[1]
    assert [critic for critic, _ in again.terms] == ["critic", "another", "critic"]


def test_saved_trajectories(supervise, comfy, nodes):
    folder = comfy / "output" / "dual_process" / "trajectories" / "taught"
    node = nodes["DualProcessDistillProcess"]
    before = node.fingerprint_inputs(saved="trajectories/taught")
    save_painting(slots("a saved thing"), folder / "one")
    assert supervise(saved="trajectories/taught")[0].texts == ("a saved thing",)
    assert node.fingerprint_inputs(saved="trajectories/taught") != before
    assert node.fingerprint_inputs(saved="") == []


def test_what_failed(supervise):
    prompts, loss, _ = supervise(slots(chance=0.0, drafted=(0, 1)), slots("right"), teach="what failed")
    assert (prompts.texts, loss.targets) == (("things",), ())
    assert [q.text for q in loss.terms[0][1]] == ["Is there a thing in slot 2?"]


class Grower:
    """Grey drafts of 112 × 112 pixels, on which a stroke leaves white."""

    info = INFO
    keeps_outside = True

    def draft(self, prompt, seed):
        return Canvas(torch.full((1, 16, 14, 14), 0.5), torch.full((1, 3, 112, 112), 0.5))

    def stroke(self, canvas, stroke, seed):
        return Canvas(torch.ones(1, 16, 14, 14), torch.ones(1, 3, 112, 112))


def tree():
    fact = Fact("f0", "Is there a tree in the image?", stroke="s0")
    made = Plan(PROMPT, (fact,), (Stroke("s0", "add", "add a tree", "a tree"),))

    class Thinker(SlotThinker):
        def read(self, picture, facts):
            return [float(picture.mean() > 0.9) if f.id == "f0" else float(picture.std() == 0) for f in facts]

    return paint(made, Grower(), Thinker(made), Settings(restarts=0), seed=3)


def test_strokes_are_shown_their_canvas(supervise):
    prompts, loss, _ = supervise(tree(), teach="strokes")
    assert prompts.texts == ("add a tree",)
    (reference,) = prompts.conditionings[0][0][1]["reference_latents"]
    assert torch.equal(reference, torch.full((1, 16, 14, 14), 0.5))
    assert not reference.is_inference()
    assert loss.targets == ()  # the stroke has no region
    made = slots()
    foreign = replace(made, canvases={name: Canvas(None, c.picture) for name, c in made.canvases.items()})
    with pytest.raises(Exception, match="no latents"):
        supervise(foreign, teach="strokes")
    with pytest.raises(Exception, match="no trajectory"):
        supervise()


def test_distill_lora_learns_from_it(supervise, run, nodes, demo_models):
    model, clip, vae, critic = demo_models
    prompts, loss, _ = supervise(tree(), clip=clip, critic=critic, target_weight=20.0)
    short = {"train_steps": 2, "batch_size": 2, "rank": 4, "anchor_pool": 4}
    settings = {**defaults(nodes["DualProcessDistill"]), **short}
    lora = run("Distill", model=model, vae=vae, prompts=prompts, loss=loss, **settings)[0]
    recipe = json.loads(lora.metadata["dual_process.recipe"])
    assert recipe["penalties"]["targets"] == 20.0
    assert [target["seeds"] for target in recipe["targets"]] == [[tree().trajectory.steps[0].seed]]
    assert json.loads(lora.metadata["dual_process.history"])["steps"] == 2
