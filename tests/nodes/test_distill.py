"""Distill LoRA at work in one process, on the demo models, in inference mode."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

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


def test_the_preset_fits_the_model_and_the_user_goes_before_it(teach, pack, view):
    teach()
    about = view()["about"]
    assert about[0].startswith("demo models: 3 steps of 2 at 0.0005, rank 4, alpha 64, 112 × 112 pixels, 1 sampler")
    teach(learning_rate=1e-4, lora_alpha=8.0, range_weight=0.0)
    assert view()["about"][0].startswith("demo models: 3 steps of 2 at 0.0001, rank 4, alpha 8,")
    assert "range" not in view()["about"][0]


def test_the_same_seed_gives_the_same_lora_whether_it_looks_or_not(teach):
    first, second = teach(look_every=1)[0], teach(look_every=0, checkpoint_every=0)[0]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_layers_by_pattern(teach):
    lora = teach(lora_targets="by pattern", target_pattern=r"double_blocks\.0\.img_attn\..*")[0]
    assert {key.rsplit(".", 2)[0] for key in lora if "lora" in key} == {
        *("diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.double_blocks.0.img_attn.proj")
    }
    with pytest.raises(Exception, match="Expected LoRA targets that choose some layer"):
        teach(lora_targets="by pattern", target_pattern="img_attn")


def test_layers_of_a_half(teach):
    lora = teach(lora_targets="attention + feed-forward, last half")[0]
    assert {key.split(".")[1] for key in lora if "lora" in key} == {"single_blocks"}
    lora = teach(lora_targets="attention + feed-forward, first half")[0]
    assert {key.split(".")[1] for key in lora if "lora" in key} == {"double_blocks"}


def test_a_vae_of_its_own_for_the_gradient(teach, nodes):
    """The same weights again change nothing; others change the LoRA, but not what the base model paints."""
    plain = teach()
    with torch.inference_mode():
        same, other = (nodes["DualProcessLoadDemoModels"].execute().args[2] for _ in range(2))
        layers = list(other.first_stage_model.parameters())
        layers[-1].data += 0.1
    assert same.first_stage_model is not other.first_stage_model
    again = teach(gradient_vae=same)
    assert all(torch.equal(again[0][key], plain[0][key]) for key in plain[0])
    changed = teach(gradient_vae=other)
    assert not all(torch.equal(changed[0][key], plain[0][key]) for key in plain[0])
    assert torch.equal(changed[2], plain[2])
    assert "gradients by" in changed[0].metadata["dual_process.base_model"]


@pytest.fixture
def view(comfy):
    """The state that the newest run has left on the server."""

    def read():
        folder = max((comfy / "output" / "dual_process" / "runs").glob("*"), key=lambda p: p.stat().st_mtime_ns)
        return {**json.loads((folder / "state.json").read_text()), "folder": folder}

    return read


def test_what_a_run_leaves(teach, view):
    teach(look_every=1)
    state = view()
    assert (state["status"], state["step"]) == ("done", 3)
    assert state["run"] == state["folder"].name
    assert state["curves"]["step"] == [1, 2, 3]
    assert [len(curve) for curve in state["curves"]["p_answer"]] == [3] * 5  # the control and four keep questions
    assert set(state["curves"]["penalties"]) == {"anchors", "range"}
    assert [look["step"] for look in state["looks"]] == [0, 1, 2, 3]
    assert state["pictures"] == {"prompts": HELD_OUT.splitlines(), "before": 0, "now": 3}
    assert state["verdict"]["outcome"] in ("learned", "damaged", "hacked", "not learned")
    left = {path.name for path in state["folder"].iterdir()}
    assert {"report.json", "progress.png", "before_after.png", "best.safetensors", "before_0.jpg", "now_1.jpg"} <= left
    assert not [name for name in left if name.startswith("checkpoint_")]  # the run is done


def stop_after(view_class, step, monkeypatch):
    """Presses the button after a step."""
    on_step = view_class.on_step

    def press(self, report, preview):
        on_step(self, report, preview)
        if report.step == step:
            self.stop()

    monkeypatch.setattr(view_class, "on_step", press)


def test_stop_and_keep_then_go_on(teach, run, nodes, view, pack, monkeypatch):
    """The LoRA of a run that was stopped and resumed is that of an undisturbed one, bit for bit, whatever the preset
    says by then."""
    whole = teach(train_steps=4, learning_rate=1e-3)[0]
    node = nodes["DualProcessDistill"].PREPARE_CLASS_CLONE({"hidden_inputs": {"UNIQUE_ID": "1"}})
    before = node.fingerprint_inputs()
    stop_after(sys.modules[f"{pack.__name__}.nodes.view"].View, 2, monkeypatch)
    part, *_, verdict, losses = teach(train_steps=4, learning_rate=1e-3).args
    assert len(losses["loss"]) == 2
    assert verdict
    assert view()["message"] == "stopped at step 2 and kept"
    assert node.fingerprint_inputs() != before  # half a LoRA is not served from the cache
    monkeypatch.undo()
    (name,) = [n for n in checkpoint_names(nodes) if "step 2 of 4" in n]
    chosen, picture = run("LoadDistillationCheckpoint", run=name).args
    assert picture.shape[-1] == 3
    presets = sys.modules[f"{pack.__name__}.distillation.presets"]
    demo = presets.PRESETS["demo"]
    newer = replace(demo, recipe={**demo.recipe, "adam_beta2": 0.5})
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "demo": newer})
    resumed = teach(train_steps=4, learning_rate=1e-3, resume=chosen)[0]
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert any(not torch.equal(part[key], whole[key]) for key in whole)
    with pytest.raises(Exception, match=r"other \['learning_rate'\]"):
        teach(train_steps=4, learning_rate=1e-4, resume=chosen)
    assert view()["status"] == "failed"


def checkpoint_names(nodes):
    (listed,) = nodes["DualProcessLoadDistillationCheckpoint"].define_schema().inputs
    return listed.options


def test_cancel_keeps_the_lora_where_loaders_list_it(teach, comfy, view, monkeypatch, nodes):
    import comfy.model_management
    import comfy.utils
    import folder_paths

    def hook(value, total, preview, **_):
        if (value, total) == (2, 50):
            comfy.model_management.interrupt_current_processing()  # as the server's /interrupt does

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        teach(train_steps=50, look_every=1)
    state = view()
    assert state["status"] == "stopped"
    assert state["message"] == f"stopped at step 2, saved as {state['saved']}"
    assert state["saved"] in folder_paths.get_filename_list("loras")
    with safe_open(folder_paths.get_full_path("loras", state["saved"]), "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["dual_process.history"])["steps"] == 2
    assert json.loads(metadata["dual_process.verdict"])["outcome"]
    assert any("step 2 of 50" in name for name in checkpoint_names(nodes))


def test_the_best_lora_and_patience(teach, view, pack, monkeypatch):
    watch = sys.modules[f"{pack.__name__}.evaluation.watch"]
    scores = iter([0.2, 0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(watch, "held_out_score", lambda look: next(scores))
    losses = teach(train_steps=9, look_every=1, patience=2, give="best")[5]
    assert view()["message"] == "stopped early, at step 2"  # the one that it gives
    assert len(losses["loss"]) == 2
    with safe_open(view()["folder"] / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["dual_process.history"])["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 512, "height": 512}, "512 × 512 pixels are too many for demo models"),
        ({"cfg": 3.0}, "needs a negative CONDITIONING"),
    ],
)
def test_what_cannot_work_is_said_before_training(teach, view, changes, message):
    with pytest.raises(Exception, match=message) as raised:
        teach(**changes)
    assert (view()["status"], view()["message"]) == ("failed", str(raised.value))
    assert f"{type(raised.value).__module__}.{type(raised.value).__name__}" in (
        "dual_process.RecipeError",
        "dual_process.GeneratorError",
    )


def test_notes_on_what_hardly_suits(teach, run, demo_models, view, encode):
    odd = run("TrainingPrompts", clip=demo_models[1], text="a purple sky over the sea", held_out="")[0]
    empty = {"samples": torch.zeros(3, 16, 14, 14)}
    teach(prompts=odd, latent=empty, cfg=2.0, negative=encode("the sea"))
    notes = " ".join(view()["about"][1:])
    assert "guidance built in" in notes
    assert "The LATENT holds 3 pictures" in notes
    assert "do not know purple" in notes


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_an_existing_lora_is_gone_on_from(teach, run, format):
    """With hardly any rate, the LoRA that comes out is the one that went in, whatever its key names."""
    first = teach(learning_rate=5e-3)[0]
    name = run("SaveDistilledLoRA", lora=first, name=f"start/{format}", format=format)[0]
    again = teach(learning_rate=1e-12, existing_lora=name, rank=6, lora_alpha=6.0)[0]
    for key in (key for key in first if key.endswith("lora_up.weight")):
        down, alpha = key.replace("_up", "_down"), key.replace("lora_up.weight", "alpha")
        want = first[key] @ first[down] * first[alpha] / 4
        assert torch.allclose(again[key] @ again[down] * again[alpha] / 6, want, atol=1e-6)
    assert first["diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight"].abs().max() > 1e-4
    with pytest.raises(Exception, match=r"rank 4, above 2: set rank to 4"):
        teach(existing_lora=name, rank=2)


def test_the_saved_file_has_a_picture_beside_it(teach, run, comfy, view):
    name = run("SaveDistilledLoRA", lora=teach()[0], name="looks/horizon", format="diffusers")[0]
    assert (comfy / "models" / "loras" / name).with_suffix(".png").stat().st_size > 5000
    assert view()["saved"] == name


def test_prompts_from_conditionings(run, encode, demo_models):
    sea, sand = encode("a day sky over the sea"), encode("a day sky over the sand")
    gaps = {"conditioning0": None, "conditioning2": sea, "conditioning5": sand}
    found = run("PromptsFromConditionings", texts="", conditionings=gaps)[0]
    assert found.conditionings == (sea, sand)
    assert found.texts is None
    written = run("TrainingPrompts", clip=demo_models[1], text="a night sky over the sea", held_out="the grass")[0]
    both = run("PromptsFromConditionings", texts="one\ntwo", prompts=written, conditionings=gaps)[0]
    assert both.texts == ("a night sky over the sea", "one", "two")
    assert len(both.conditionings) == 3
    assert both.held_out_texts == ("the grass",)
    with pytest.raises(Exception, match="one line of texts for each of 2"):
        run("PromptsFromConditionings", texts="one", conditionings=gaps)
    with pytest.raises(Exception, match="No CONDITIONING is connected"):
        run("PromptsFromConditionings", texts="", conditionings={})


def test_prompts_from_a_file_of_the_input_folder_only(run, demo_models, comfy):
    (comfy / "input" / "mine.txt").write_text("# mine\na day sky over the sea\n")
    found = run("TrainingPrompts", clip=demo_models[1], text="x", held_out="", file="mine.txt")[0]
    assert found.texts == ("a day sky over the sea",)
    with pytest.raises(Exception, match="below ComfyUI's input folder"):
        run("TrainingPrompts", clip=demo_models[1], text="x", held_out="", file="../secret.txt")
    with pytest.raises(Exception, match="There is no training prompt"):
        run("TrainingPrompts", clip=demo_models[1], text="# nothing", held_out="")


def test_the_memory_plan_is_said_and_what_was_taken(teach, view):
    teach()
    said = r"\w+ resident, \w+ resident: about \d\.\d of \d+\.\d GB free; taken at most \d+\.\d GB"
    assert re.fullmatch(said, view()["memory"]), view()["memory"]


@pytest.mark.parametrize("memory", ["take turns", "block by block"])
def test_every_memory_plan_trains_the_same_lora(teach, view, memory):
    whole, other = teach().args[0], teach(memory=memory).args[0]
    assert ("streamed" if memory == "block by block" else "in its turn") in view()["memory"]
    for name, tensor in whole.items():
        assert (other[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_it_goes_on_by_a_thriftier_plan_where_memory_runs_out(teach, pack, view, monkeypatch, caplog):
    kind = sys.modules[f"{pack.__name__}.generators.comfy.generator"].ComfyGenerator
    estimate, calls = kind.estimate, []

    def short_of_memory(self, *args):
        calls.append(self._checkpointing)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return estimate(self, *args)

    monkeypatch.setattr(kind, "estimate", short_of_memory)
    widgets = {"anchor_weight": 0.0}
    lora = teach(**widgets).args[0]
    assert "Memory ran out after step 1 with the plan 'resident'" in caplog.text
    assert (calls[0], calls[-1]) == (False, True)
    monkeypatch.setattr(kind, "estimate", estimate)
    for name, tensor in teach(**widgets).args[0].items():
        assert (lora[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_weights_that_cannot_be_moved_are_said_to_be_resident(teach, pack, view, monkeypatch):
    generator = sys.modules[f"{pack.__name__}.generators.comfy.generator"]
    monkeypatch.setattr(generator, "why_not", lambda *_: "are in a format of its own")
    teach(memory="block by block")
    assert re.match(r"\w+ resident and checkpointed, \w+ streamed", view()["memory"]), view()["memory"]
