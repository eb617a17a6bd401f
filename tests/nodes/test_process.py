"""The nodes of the process, over a painter of slots and a critic whose thinker reads them."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch
from fake_models import SlotPainter, SlotThinker, picture_of, plan, region

pytestmark = pytest.mark.comfyui
PLAN = {
    "facts": [{"id": f"f{n}", "question": f"Is there a thing in slot {n}?", "stroke": f"s{n}"} for n in range(3)],
    "strokes": [
        {
            "id": f"s{n}",
            "operation": "add",
            "instruction": f"add a thing in slot {n}",
            "local_prompt": "a thing",
            "region": [n / 4, 0, (n + 1) / 4, 1],
        }
        for n in range(3)
    ],
}


class Critic:
    """With a thinker of its own, as the second demo world's."""

    def __init__(self, thinker=None):
        made = thinker or SlotThinker()
        self.dual_process_thinker = lambda critic: made


class Steered(SlotPainter):
    """What is steered by hand empties the first slot."""

    def stroke(self, canvas, stroke, seed):
        return self._made("by hand", "", {}) if stroke.id == "by hand" else super().stroke(canvas, stroke, seed)


@pytest.fixture
def paint(run):
    def execute(painter=None, critic=None, prompt="things", **changes):
        settings = {"budget": 12, "refinements": 2, "whole_draft": True, "restarts": 0, "restart_below": 0.3}
        settings |= {"keep_psnr": 30.0, "patience": 2, "inspect": True, "roll_back": True, "seed": 0}
        return run(
            "PaintByProcess",
            painter=painter or SlotPainter(),
            critic=critic or Critic(),
            prompt=prompt,
            **{**settings, **changes},
        )

    return execute


@pytest.fixture
def interrupted(comfy):
    """The folders that the test has left of processes that ended early."""
    folder = comfy / "output" / "dual_process" / "interrupted"
    before = set(folder.glob("*"))
    return lambda: sorted(set(folder.glob("*")) - before)


def things(image):
    """Which slots of an IMAGE are filled."""
    return [n for n in range(4) if image[0, :, 4 * n : 4 * n + 4].mean() > 0.9]


def test_a_picture_is_painted_and_told_of(paint, interrupted, monkeypatch, pack):
    import sys

    said, shown = [], []
    stages = sys.modules[f"{pack.__name__}.nodes.stages"]
    monkeypatch.setattr(stages, "show_text", lambda text, node: said.append(text))
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", lambda done, total, preview, **_: shown.append((done, total)))
    image, latent, trajectory, filmstrip, report = paint().args
    assert things(image) == [0, 1, 2]
    assert image.shape == (1, 4, 16, 3)
    assert "keeps no latent" in latent.message
    assert trajectory.trajectory.stop_reason == "done"
    assert filmstrip.shape[0] == 1
    assert filmstrip.shape[2] > 1000  # four columns
    assert report.startswith("Everything is as planned.\n3 of 3 facts held.\n4 passes")
    assert [done for done, _ in shown] == [1, 2, 3, 4]
    assert "planning" in said
    assert "pass 1: drafting things" in said
    assert "pass 2: add a thing in slot 0" in said
    assert "inspecting 3 facts" in said
    assert interrupted() == []


def test_a_latent_goes_on_to_other_nodes(paint):
    class Latents(SlotPainter):
        def _made(self, name, text, there):
            from dual_process.process import Canvas

            self.there = there
            return Canvas(torch.full((1, 16, 2, 8), float(len(there))), picture_of(there))

        def stroke(self, canvas, stroke, seed):
            return self._made("", "", {**self.there, int(stroke.id[-1]): 1.0})

    samples = paint(Latents())[1]["samples"]
    assert torch.equal(samples, torch.full((1, 16, 2, 8), 3.0))


def test_a_plan_of_the_users_own_and_steps_by_hand(run, paint):
    own, text = run("PlanImage", prompt="things", own_plan=json.dumps(PLAN)).args
    again, same = run("PlanImage", prompt="other", own_plan=text).args
    assert (own, text) == (again, same)
    assert own.source == "user"
    assert own.strokes[1].region.left == 0.25
    painter = Steered()
    trajectory = paint(painter, prompt="", plan=own, budget=1)[2]
    inputs = {"painter": painter, "critic": Critic(), "local_prompt": "", "keep": "always", "seed": 1, "mask": None}
    image, _, trajectory, filmstrip, report = run("ProcessStep", trajectory=trajectory, instruction="", **inputs).args
    assert things(image) == [0]
    assert "1 of 3 facts held.\n2 passes" in report
    assert filmstrip.shape[2] > 400
    monkey = {**inputs, "trajectory": trajectory, "instruction": "put a thing there"}
    slots = torch.zeros(1, 4, 16)
    slots[0, 1:3, 5:7] = 1
    hand = run("ProcessStep", **{**monkey, "mask": slots})[2].trajectory.steps[-1]
    assert (hand.stroke, hand.accepted, hand.mask) == ("by hand", True, True)
    assert hand.reflection.with_status("lost") == ("f0",)
    better = run("ProcessStep", **{**monkey, "keep": "if better"})
    assert things(better[0]) == [0]
    assert not better[2].trajectory.steps[-1].accepted


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 4, 16), "The mask is empty"),
        (torch.ones(1, 8, 8), "mask of the picture's size, 16 × 4 .*, got 8 × 8"),
        (torch.ones(2, 4, 16), "Expected one mask, got 2"),
    ],
)
def test_masks_that_do_not_fit_are_refused(run, paint, mask, message):
    trajectory = paint(budget=1)[2]
    inputs = {"instruction": "", "local_prompt": "", "keep": "always", "seed": 0}
    with pytest.raises(Exception, match=message):
        run("ProcessStep", painter=SlotPainter(), critic=Critic(), trajectory=trajectory, mask=mask, **inputs)


def test_an_image_is_begun_with_and_encoded_once(paint):
    class Beginning(SlotPainter):
        def canvas_of_picture(self, picture):
            return self._made("encoded", "", {0: 1.0})

    painter, image = Beginning(), picture_of({0: 1.0}).movedim(1, -1)
    made, _, trajectory, _, _ = paint(painter, image=image).args
    assert [name for name, _ in painter.calls] == ["encoded", "s1", "s2"]
    assert things(made) == [0, 1, 2]
    assert trajectory.trajectory.passes == 3
    with pytest.raises(Exception, match="Expected one picture, got a batch of 2"):
        paint(painter, image=image.expand(2, -1, -1, -1))
    with pytest.raises(Exception, match="only goes on from pictures that it has made itself"):
        paint(SlotPainter(), image=image)


@pytest.mark.parametrize(
    ("own_plan", "message"),
    [
        ("{", "Expected a plan as JSON"),
        ("[1]", "plan as a JSON object with facts and strokes, got a list"),
        ("{}", "The plan has no facts"),
        (json.dumps({**PLAN, "colour": "red"}), "A plan has no field colour"),
        (
            json.dumps({"facts": [{"id": "a", "question": "?"}, {"id": "b", "question": "?", "answer": "No"}]}),
            "contradict",
        ),
        (
            json.dumps({**PLAN, "strokes": [{**PLAN["strokes"][0], "region": [0, 1]}]}),
            r"as \[left, top, right, bottom\]",
        ),
        (json.dumps({**PLAN, "strokes": [{**PLAN["strokes"][0], "region": [0, 0, 2, 1]}]}), "between 0 and 1"),
        (json.dumps({**PLAN, "strokes": PLAN["strokes"][:1]}), "facts f1, f2 belong to strokes that the plan does not"),
        ("", "connect a critic, or write a plan"),
    ],
)
def test_plans_that_say_nothing_or_contradict_themselves_are_refused(run, own_plan, message):
    with pytest.raises(Exception, match=message):
        run("PlanImage", prompt="things", own_plan=own_plan)


def test_bad_prompts_and_critics_are_named(run, paint):
    with pytest.raises(Exception, match="The prompt is empty: say what the picture is to show, or connect a plan"):
        paint(prompt=" ")
    for answer, p in (("Yes", 0.9), ("No", 0.1)):
        with pytest.raises(Exception, match=f"The critic says {answer} to every question"):
            paint(critic=Critic(SlotThinker(always=p)))
        with pytest.raises(Exception, match=f"The critic says {answer} to every question"):
            run("InspectImage", critic=Critic(SlotThinker(always=p)), image=torch.rand(1, 4, 16, 3), plan=plan())


def test_pictures_are_inspected_one_by_one(run):
    images = torch.cat([picture_of({0: 1.0}), picture_of({0: 1.0, 1: 1.0, 2: 1.0})]).movedim(1, -1)
    output = run("InspectImage", critic=Critic(), image=images, plan=plan())
    readings, drawn, held = output.args
    assert readings.splitlines()[:3] == [
        "image 1:",
        "✓ Is there a thing in slot 0?   P(Yes) = 0.950",
        "✗ Is there a thing in slot 1?   P(Yes) = 0.050",
    ]
    assert held == [pytest.approx(1 / 3), 1.0]
    assert drawn.shape[0] == 2
    assert output.ui["text"] == (readings,)


@pytest.mark.parametrize("when", ["between passes", "within a pass"])
def test_cancel_keeps_the_steps_so_far_and_they_go_on(paint, run, interrupted, when):
    import comfy.model_management

    class Cancelled(SlotPainter):
        def stroke(self, canvas, stroke, seed):
            made = super().stroke(canvas, stroke, seed)
            if stroke.id == "s1":
                comfy.model_management.interrupt_current_processing()
                if when == "within a pass":
                    comfy.model_management.throw_exception_if_processing_interrupted()
            return made

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paint(Cancelled())
    assert not comfy.model_management.processing_interrupted()  # the next run is not cancelled, too
    (folder,) = interrupted()
    names = {path.name for path in folder.iterdir()}
    steps = 3 if when == "between passes" else 2
    assert {"trajectory.json", "filmstrip.png", "chats.jsonl", *(f"step_0{n}.png" for n in range(steps))} <= names
    loaded = run("LoadTrajectory", folder=f"interrupted/{folder.name}")
    assert loaded[0].trajectory.stop_reason == "interrupted"
    assert things(loaded[1]) == list(range(steps - 1))
    painter = SlotPainter()
    made = paint(painter, resume=loaded[0])
    assert len(painter.calls) == 4 - steps
    assert made[2].trajectory.to_json() == paint()[2].trajectory.to_json()


def test_what_ended_early_is_found_again_by_what_it_is_made_from(pack, paint, tmp_path, monkeypatch):
    import sys

    trajectories = sys.modules[f"{pack.__name__}.nodes.trajectories"]

    def key(image=None, steps=2, **changes):
        inputs = {"painter": ["p", 0], "seed": 3, **changes}
        prompt = {
            "p": {"class_type": "Painter", "inputs": {"steps": steps}},
            "1": {"class_type": "P", "inputs": inputs},
        }
        return trajectories.key_of(prompt, "1", image)

    assert key() == key()
    others = [
        key(steps=3),
        key(seed=4),
        key(painter=["p", 1]),
        key(torch.zeros(1, 2, 2, 3)),
        key(torch.ones(1, 2, 2, 3)),
    ]
    assert len({key(), *others}) == 6
    for prompt in ({}, {"1": {"class_type": "P"}}, {"1": {"class_type": "P", "inputs": {"painter": ["p", 0]}}}, None):
        assert trajectories.key_of(prompt, "1") != trajectories.key_of(prompt, "1")

    monkeypatch.setattr(trajectories, "interrupted_folder", lambda: tmp_path)
    painting = paint()[2]
    left = trajectories.Kept(key())
    left.whole(painting)
    checked = []
    assert trajectories.Kept(key(seed=4)).earlier(checked.append) is None
    again = trajectories.Kept(key())
    assert again.earlier(checked.append).trajectory.to_json() == painting.trajectory.to_json()
    assert [trajectory.to_json() for trajectory in checked] == [painting.trajectory.to_json()]
    (left.folder / "step_00.png").unlink()  # steps that are there are not written again
    again(painting)
    assert not (left.folder / "step_00.png").exists()
    assert trajectories.Kept(key()).earlier(checked.append) is None  # but broken ones are not gone on from
    again.discard()
    assert not left.folder.exists()


def test_cancel_before_the_first_picture_leaves_nothing(paint, interrupted):
    import comfy.model_management

    class Cancelled(SlotThinker):
        def plan(self, prompt):
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        paint(critic=Critic(Cancelled()))
    assert interrupted() == []


@pytest.mark.parametrize("full", [False, True])
def test_a_failure_keeps_the_steps_so_far_and_says_where(paint, interrupted, caplog, full):
    class Failing(SlotPainter):
        def stroke(self, canvas, stroke, seed):
            if stroke.id == "s1":
                raise torch.OutOfMemoryError("no room") if full else RuntimeError("no luck")
            return super().stroke(canvas, stroke, seed)

    where = r"after 2 steps .*They lie in output/dual_process/interrupted/"
    if full:
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            paint(Failing())
        assert any("They lie in output/dual_process/interrupted/" in r.getMessage() for r in caplog.records)
    else:
        with pytest.raises(Exception, match=where):
            paint(Failing())
    (folder,) = interrupted()
    assert json.loads((folder / "trajectory.json").read_text())["stop_reason"] == "failed"


def test_a_trajectory_is_saved_and_loaded(paint, run, comfy):
    image, _, trajectory, filmstrip, report = paint().args
    saved = run("SaveTrajectory", trajectory=trajectory, name="mine/way")
    folder = comfy / "output" / "dual_process" / saved[0]
    assert saved[0] == "trajectories/mine/way_00001"
    assert run("SaveTrajectory", trajectory=trajectory, name="mine/way")[0] == "trajectories/mine/way_00002"
    (shown,) = saved.ui["images"]
    assert (comfy / "output" / shown["subfolder"] / shown["filename"]).is_file()
    assert json.loads((folder / "chats.jsonl").read_text().splitlines()[0])["messages"]
    loaded = run("LoadTrajectory", folder=saved[0])
    assert loaded[0].trajectory.to_json() == trajectory.trajectory.to_json()
    assert torch.equal(loaded[1], image)
    assert torch.equal(loaded[2], filmstrip)
    assert loaded[3] is loaded[0].trajectory.plan
    assert loaded[4] == report
    going_on = {"instruction": "more", "local_prompt": "", "keep": "always", "seed": 0}
    run("ProcessStep", painter=Steered(), critic=Critic(), trajectory=loaded[0], **going_on)  # from its latent
    (folder / "trajectory.json").write_text(json.dumps({"plan": 1, "steps": []}))
    with pytest.raises(Exception, match="The trajectory is of another version"):
        run("LoadTrajectory", folder=saved[0])
    with pytest.raises(Exception, match="There is no trajectory"):
        run("LoadTrajectory", folder="../secret")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "C:/x", "", "a//b"])
def test_trajectories_stay_in_their_folder(paint, run, comfy, name):
    before = sorted(comfy.rglob("trajectory.json"))
    with pytest.raises(Exception, match="below output/dual_process/trajectories"):
        run("SaveTrajectory", trajectory=paint(budget=1)[2], name=name)
    assert sorted(comfy.rglob("trajectory.json")) == before


def test_the_region_of_a_mask_is_its_smallest_rectangle(pack):
    import sys

    mask = torch.zeros(4, 16)
    mask[:, 4:8] = 1
    assert vars(sys.modules[f"{pack.__name__}.nodes.steering"].region_of(mask, 16, 4)) == vars(region(1))


def test_any_critic_inspects_and_can_train_afterwards(run, demo_models, encode):
    """One without a thinker of its own; nothing of it is left in inference mode."""
    import nodes as core

    model, _, vae, critic = demo_models
    with torch.inference_mode():
        cond = encode("a night sky over the sea")
        empty = {"samples": torch.zeros(1, 16, 14, 14)}
        (latent,) = core.KSampler().sample(model, 1, 1, 1.0, "euler", "simple", cond, cond, empty)
        (image,) = core.VAEDecode().decode(vae, latent)
    facts = [{"id": time, "question": f"Is it {time}?"} for time in ("day", "night")]
    own = run("PlanImage", prompt="a night", own_plan=json.dumps({"facts": facts}))[0]
    readings, drawn, held = run("InspectImage", critic=critic, image=image, plan=own).args
    day, night = readings.splitlines()
    assert day.startswith("✗ Is it day?")
    assert night.startswith("✓ Is it night?")
    assert held == [0.5]
    assert drawn.shape[2] == 660
    picture = image.clone().movedim(-1, 1).requires_grad_()
    asked = type("Asked", (), {"text": "Is it night?", "answer": "Yes", "references": ()})
    critic.log_likelihood(picture, [asked]).sum().backward()
    assert picture.grad.abs().max() > 0


@pytest.mark.parametrize(("critic", "thinker"), [("controls", "StrokesThinker"), ("process", "TaughtThinker")])
def test_load_demo_strokes_gives_the_critic_that_is_asked_for(nodes, pack, run, critic, thinker):
    *_, loaded, _ = nodes["DualProcessLoadDemoStrokes"].execute(critic).args
    made = import_module(f"{pack.__name__}.nodes.stages").thinker_of(loaded)
    assert type(made).__name__ == thinker
    plan, _ = run("PlanImage", critic=loaded, prompt="a blue house and a tree by night", own_plan="").args
    assert plan.source == ("critic" if critic == "process" else "rules")
