"""The nodes at work in one process, on the demo models, in inference mode."""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from node_inputs import EMPTY, QUESTION
from safetensors import safe_open

pytestmark = pytest.mark.comfyui


def test_distil_gives_lora_losses_and_pictures(distil, run, pack, tmp_path):
    lora, losses, before, after, _ = distil().args
    assert before.shape == after.shape == (2, 112, 112, 3)
    assert not torch.equal(before, after)
    assert [type(value) for value in losses["loss"]] == [float] * 3
    assert all(key.startswith("diffusion_model.") for key in lora)
    assert set(lora.diffusers) == {k for k in lora.diffusers if k.startswith("transformer.")}
    recipe = json.loads(lora.metadata["dual_process.recipe"])
    assert recipe["questions"][0]["text"] == QUESTION
    assert recipe["questions"][0]["overlay"][0]["position"] == 0.3
    assert (recipe["seed"], recipe["rank"], recipe["train_steps"]) == (1, 4, 3)


def fingerprint(demo_models):
    """A hash of every weight of MODEL, CLIP and VAE, without the LoRAs that other tests have patched in."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    model, clip, vae, _ = demo_models
    digest = hashlib.sha256()
    for module in (model.model, clip.cond_stage_model, vae.first_stage_model):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def weights_stay(demo_models):
    before = fingerprint(demo_models)
    yield
    assert fingerprint(demo_models) == before


def test_the_same_seed_gives_the_same_lora_and_another_another(distil, weights_stay):
    first, second, other = distil()[0], distil()[0], distil(seed=2)[0]
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_core_nodes_take_the_lora_and_the_losses(distil, demo_models, encode):
    import comfy_extras.nodes_train as core_train

    import nodes as core

    lora, losses, _, after, _ = distil().args
    with torch.inference_mode():
        core_train.SaveLoRA.execute(lora, "loras/test")
        core_train.LossGraphNode.execute(losses, "graph")
        for bypass in (False, True):
            model = core_train.LoraModelLoader.execute(demo_models[0], lora, 1.0, bypass).result[0]
            cond = encode("a day sky over the sea")
            (latent,) = core.KSampler().sample(model, 1, 1, 1.0, "euler", "simple", cond, cond, EMPTY)
            (image,) = core.VAEDecode().decode(demo_models[2], latent)
            assert torch.allclose(image[0], after[0], atol=1e-4)


@pytest.mark.parametrize("format", ["diffusers", "comfyui"])
def test_saved_lora_is_found_by_lora_loader(distil, run, comfy, demo_models, encode, format):
    import folder_paths

    import nodes as core

    lora, _, _, after, _ = distil().args
    names = [run("SaveDistilledLoRA", lora=lora, name=f"mine/{format}", format=format)[0] for _ in range(2)]
    assert names == [f"mine/{format}_00001_.safetensors", f"mine/{format}_00002_.safetensors"]
    assert names[0] in folder_paths.get_filename_list("loras")
    with torch.inference_mode():
        model, _ = core.LoraLoader().load_lora(demo_models[0], demo_models[1], names[0], 1.0, 1.0)
        cond = encode("a night sky over sand")
        (latent,) = core.KSampler().sample(model, 2, 1, 1.0, "euler", "simple", cond, cond, EMPTY)
        (image,) = core.VAEDecode().decode(demo_models[2], latent)
    assert torch.allclose(image[0], after[1], atol=1e-4)
    with safe_open(comfy / "models" / "loras" / names[0], "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == f"{format}_00001_"
    assert "dual_process.recipe" in metadata


@pytest.mark.parametrize("disabled", [False, True])
def test_disable_metadata_leaves_the_workflow_out_of_files(distil, run, comfy, monkeypatch, disabled):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", disabled)
    lora = distil()[0]
    name = run("SaveDistilledLoRA", lora=lora, name="private", format="diffusers")[0]
    with safe_open(comfy / "models" / "loras" / name, "pt") as file:
        metadata = file.metadata()
    graph = {"prompt", "workflow"}
    assert set(metadata) & graph == set(lora.metadata) & graph == (set() if disabled else graph)
    assert {"dual_process.recipe", "dual_process.base_model", "modelspec.title"} <= set(metadata)


def test_save_takes_the_plain_lora_of_core(run, comfy):
    plain = {
        "diffusion_model.x.lora_up.weight": torch.ones(4, 2),
        "diffusion_model.x.lora_down.weight": torch.ones(2, 4),
    }
    name = run("SaveDistilledLoRA", lora=plain, name="plain", format="diffusers")[0]
    with safe_open(comfy / "models" / "loras" / name, "pt") as file:
        assert set(file.keys()) == set(plain)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "C:/x", "", "a//b", "..\\x", "x\0y"])
def test_save_stays_in_its_folder(run, distil, comfy, name):
    before = sorted(comfy.rglob("*.safetensors"))
    with pytest.raises(Exception, match="below models/loras"):
        run("SaveDistilledLoRA", lora={"a": torch.ones(1)}, name=name, format="diffusers")
    assert sorted(comfy.rglob("*.safetensors")) == before


@pytest.mark.parametrize("name", ["case", "mine/take [1]"])
def test_save_never_writes_over_a_file(run, comfy, name):
    stems = [name, name, name.upper() if name == "case" else name]  # some file systems know no case
    saved = [
        run("SaveDistilledLoRA", lora={"a": torch.full((1,), i)}, name=n, format="comfyui")[0]
        for i, n in enumerate(stems)
    ]
    assert [n[-len("_00001_.safetensors") :] for n in saved] == [f"_{i:05}_.safetensors" for i in (1, 2, 3)]
    for i, n in enumerate(saved):
        with safe_open(comfy / "models" / "loras" / n, "pt") as file:
            assert file.get_tensor("a").item() == i


def test_save_below_a_file_says_so(run):
    plain = {"a": torch.ones(1)}
    file = run("SaveDistilledLoRA", lora=plain, name="file", format="comfyui")[0]
    with pytest.raises(Exception, match=r"Could not write .* choose another folder"):
        run("SaveDistilledLoRA", lora=plain, name=f"{file}/x", format="comfyui")


def test_cancel_keeps_the_lora_so_far(distil, comfy, monkeypatch, weights_stay):
    base = comfy
    import comfy.model_management
    import comfy.utils

    done = []

    def hook(value, total, preview, **_):
        done.append(value)
        if value == 2:
            comfy.model_management.interrupt_current_processing()  # as the server's /interrupt does

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    folder = base / "models" / "loras" / "dual_process" / "interrupted"
    before, runs = set(folder.glob("*")), set((base / "output" / "dual_process" / "runs").glob("*/checkpoint*"))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distil(train_steps=50)
    assert done[-1] == 2
    assert not comfy.model_management.processing_interrupted()  # the next run is not cancelled, too
    new = {p for p in folder.glob("*") if p not in before}
    (lora,) = new
    (checkpoint,) = set((base / "output" / "dual_process" / "runs").glob("*/checkpoint*")) - runs
    assert checkpoint.name == "checkpoint_000002.safetensors"
    with safe_open(lora, "pt") as file:
        assert json.loads(file.metadata()["dual_process.history"])["steps"] == 2
    monkeypatch.undo()
    assert distil()[1]["loss"]


@pytest.fixture
def kept_steps(comfy):
    """Steps of the one LoRA that the test has left in the folder of interrupted runs."""
    folder = comfy / "models" / "loras" / "dual_process" / "interrupted"
    before = set(folder.glob("*"))

    def read():
        (lora,) = set(folder.glob("*")) - before
        with safe_open(lora, "pt") as file:
            return json.loads(file.metadata()["dual_process.history"])["steps"]

    return read


def cancel_now(*_, **__):
    """As the server does: a cancel is raised once, from whatever asks first, and then forgotten."""
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    comfy.model_management.throw_exception_if_processing_interrupted()


def test_cancel_during_the_last_step_keeps_the_lora(distil, monkeypatch, kept_steps):
    import comfy.model_management
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, total, *_, **__: step == total and cancel_now())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distil()
    assert kept_steps() == 3


def test_cancel_during_the_last_pictures_keeps_the_lora(distil, monkeypatch, pack, kept_steps):
    import comfy.model_management

    kind = sys.modules[f"{pack.__name__}.evaluation.held_out"].Examiner
    look = kind.look
    monkeypatch.setattr(kind, "look", lambda self, scale: cancel_now() if scale else look(self, scale))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distil()
    assert kept_steps() == 3


def test_memory_full_during_the_last_pictures_keeps_the_lora(
    distil, monkeypatch, pack, kept_steps, weights_stay, caplog
):
    kind = sys.modules[f"{pack.__name__}.generators.comfy.generator"].ComfyGenerator
    sample = kind.sample

    def full(self, indices, seeds, lora_scale, sampling):
        if lora_scale == 1 and indices == [1]:
            raise torch.OutOfMemoryError("no room")
        return sample(self, indices, seeds, lora_scale=lora_scale, sampling=sampling)

    monkeypatch.setattr(kind, "sample", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        distil()
    assert kept_steps() == 3
    assert any("no room" in r.getMessage() and "interrupted/lora_" in r.getMessage() for r in caplog.records)


def test_a_checkpoint_that_cannot_be_written_leaves_the_lora(distil, monkeypatch, pack, kept_steps, caplog):
    import comfy.utils

    def refuse(*_):
        raise errors.LoraFileError("The header is too large.")

    errors = sys.modules[f"{pack.__name__}.core.errors"]
    result = sys.modules[f"{pack.__name__}.distillation.result"].DistillationResult
    monkeypatch.setattr(result, "save_checkpoint", refuse)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda step, *_, **__: step == 2 and cancel_now())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        distil()
    assert kept_steps() == 2
    assert any("header is too large" in record.getMessage() for record in caplog.records)


def test_a_verdict_names_what_became_of_the_pictures(distil, run, comfy):
    import folder_paths

    lora, _, before, after, verdict = distil(train_steps=3)
    assert before.shape == after.shape == (2, 112, 112, 3)
    assert verdict.startswith(("NOT LEARNED", "LEARNED", "HACKED"))
    written = json.loads(lora.metadata["dual_process.verdict"])
    assert written["verdict"] == verdict
    assert {*written} == {"outcome", "verdict", "lost", "before", "after"}
    assert {"p_answer", "p_answer_other_size", "high_frequency", "diversity"} <= {*written["after"]}
    name = run("SaveDistilledLoRA", lora=lora, name="verdict", format="diffusers")[0]
    with safe_open(folder_paths.get_full_path("loras", name), framework="pt") as file:
        assert json.loads(file.metadata()["dual_process.verdict"]) == written


def test_anchors_and_keep_questions_train(distil, run, demo_models, loss):
    keep = run("KeepQuestion", question="Is it night?", answer="as before", weight=0.3, prompts="1, 2")[0]
    assert [(q.role, q.prompts) for q in keep] == [("keep", (0, 1))]
    both = run("VQALoss", critic=demo_models[3], questions={"question0": keep}, loss=loss)[0]
    lora = distil(loss=both, anchor_weight=1.0, anchor_pool=6)[0]
    recipe = json.loads(lora.metadata["dual_process.recipe"])
    assert recipe["penalties"]["anchors"] == 1.0
    assert [q["role"] for q in recipe["questions"]] == ["control", "keep"]
    assert 1 <= len(json.loads(lora.metadata["dual_process.anchors"])) <= 6


@pytest.mark.parametrize(("text", "numbers"), [("", None), ("2", (1,)), ("1, 3-5,3", (0, 2, 3, 4))])
def test_prompt_numbers(pack, text, numbers):
    assert sys.modules[f"{pack.__name__}.nodes.questions"].prompt_numbers(text) == numbers


@pytest.mark.parametrize("text", ["0", "a", "3-1", "-2", "1;2"])
def test_other_prompt_numbers_are_refused(pack, text):
    with pytest.raises(Exception, match="numbers counted from 1"):
        sys.modules[f"{pack.__name__}.nodes.questions"].prompt_numbers(text)


def test_a_run_that_goes_astray_keeps_the_last_good_lora(distil, monkeypatch, pack, weights_stay):
    batch = sys.modules[f"{pack.__name__}.distillation.batch"]
    vqa_loss, calls = batch.vqa_loss, []

    def poisoned(*args):
        calls.append(1)
        judged = vqa_loss(*args)
        return judged if len(calls) < 3 else type(judged)(float("nan"), judged.log_likelihood, judged.image_gradient)

    monkeypatch.setattr(batch, "vqa_loss", poisoned)
    with pytest.raises(Exception, match=r"loss of step 3 is not a finite number.*interrupted.*lora_"):
        distil(train_steps=9)


def test_a_run_that_fails_keeps_the_lora(distil, monkeypatch, pack, weights_stay, kept_steps):
    batch = sys.modules[f"{pack.__name__}.distillation.batch"]
    vqa_loss, calls = batch.vqa_loss, []

    def full(*args):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no room")
        return vqa_loss(*args)

    monkeypatch.setattr(batch, "vqa_loss", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        distil(train_steps=9)
    assert kept_steps() == 2


def test_ask_shows_replies_and_probabilities(run, demo_models, distil):
    _, _, before, _, _ = distil().args
    questions = {
        f"question{i}": run("VLMQuestion", question=f"Is it {time}?", answer="Yes", weight=1.0)[0]
        for i, time in enumerate(["day", "night"])
    }
    output = run("AskVLMCritic", critic=demo_models[3], image=before, questions=questions, max_new_tokens=4)
    answers, p_answer, image = output.args
    assert image.shape == before.shape
    assert len(answers.splitlines()) == len(p_answer) == 4
    day_by_day, night_by_day, day_by_night, night_by_night = p_answer
    assert day_by_day > 0.8 > 0.2 > night_by_day
    assert night_by_night > 0.8 > 0.2 > day_by_night
    assert "Is it day? → Yes" in answers.splitlines()[0]
    assert output.ui["images"]
    assert output.ui["text"] == (answers,)


@pytest.fixture
def ask(run, demo_models):
    """Asks the demo critic three questions about three pictures, two of them with the same overlay."""
    images = torch.rand(3, 112, 112, 3, generator=torch.Generator().manual_seed(0))
    overlays = [run("HorizonOverlay", position=0.4, color="#ff0000", thickness=0.02)[0] for _ in range(2)]
    asked = {
        f"question{i}": run("VLMQuestion", question=text, answer=answer, weight=1.0, overlay=overlay)[0]
        for i, (text, answer, overlay) in enumerate(
            [(QUESTION, "Yes", overlays[0]), ("Is it day?", "Yes", None), (QUESTION, "No", overlays[1])]
        )
    }
    calls = []

    def log_likelihood(pictures, questions):
        calls.append(("rate", len(pictures), [q.answer for q in questions]))
        return demo_models[3].log_likelihood(pictures, questions)

    def answer(pictures, text, max_new_tokens):
        calls.append(("reply", len(pictures), text))
        return demo_models[3].answer(pictures, text, max_new_tokens)

    critic = SimpleNamespace(log_likelihood=log_likelihood, answer=answer)

    def execute():
        return run("AskVLMCritic", critic=critic, image=images, questions=asked, max_new_tokens=4)

    return SimpleNamespace(images=images, questions=[q for (q,) in asked.values()], calls=calls, run=execute)


def test_ask_asks_questions_of_an_overlay_at_once_and_one_picture_at_a_time(ask, demo_models, monkeypatch):
    import comfy.utils

    bars = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: bars.append((done, total)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)  # else it leaves out what comes too soon
    answers, p_answer, shown = ask.run().args
    overlaid = [("rate", 1, ["Yes", "No"]), ("reply", 1, QUESTION), ("reply", 1, QUESTION)]
    assert ask.calls == [*overlaid, ("rate", 1, ["Yes"]), ("reply", 1, "Is it day?")] * 3
    assert bars == [(1, 3), (2, 3), (3, 3)]
    pictures = ask.images.movedim(-1, 1)
    line = ask.questions[0].overlay.apply(pictures)
    assert torch.equal(shown, line.movedim(1, -1))
    for row, question in enumerate(ask.questions):  # one question and all pictures in one call
        seen = pictures if question.overlay is None else line
        wanted = demo_models[3].log_likelihood(seen, [question]).exp()[:, 0].tolist()
        assert p_answer[row::3] == pytest.approx(wanted, rel=1e-4)
        for picture, (p, reply) in enumerate(zip(wanted, demo_models[3].answer(seen, question.text, 4), strict=True)):
            line_of_text = answers.splitlines()[3 * picture + row]
            assert line_of_text.startswith(f"image {picture + 1}: {question.text} → {reply} ")
            assert float(line_of_text.split(" = ")[1]) == pytest.approx(p, abs=2e-3)


def test_ask_can_be_cancelled_between_pictures(ask, monkeypatch):
    import comfy.model_management
    import comfy.utils

    interrupt = comfy.model_management.interrupt_current_processing
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *_, **__: interrupt())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ask.run()
    assert len(ask.calls) == 5  # of the first picture


def test_overlays_stack_and_are_drawn_as_in_training(run, pack):
    image = torch.full((2, 40, 60, 3), 0.5)
    line = run("HorizonOverlay", position=0.5, color="#00ff00", thickness=0.1)[0]
    both = run("PaletteOverlay", colors=["#0000ff", "#ff0000"], height=0.25, overlay=line)[0]
    drawn = run("ApplyOverlay", image=image, overlay=both)[0]
    assert torch.allclose(drawn[0, 20, 30], torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(drawn[1, 38, 10], torch.tensor([0.0, 0.0, 1.0]))
    assert torch.allclose(drawn[1, 38, 50], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.allclose(drawn[0, 5, 5], torch.tensor([0.5, 0.5, 0.5]))
    assert drawn.shape == image.shape


def test_image_overlay_with_mask(run):
    red = torch.zeros(1, 8, 8, 3)
    red[..., 0] = 1
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    overlay = run("ImageOverlay", image=red, mode="solid", opacity=1.0, mask=mask)[0]
    drawn = run("ApplyOverlay", image=torch.zeros(1, 16, 16, 3), overlay=overlay)[0]
    assert drawn[0, 2, 8].tolist() == [1, 0, 0]
    assert drawn[0, 14, 8].tolist() == [0, 0, 0]
    with pytest.raises(Exception, match=r"mask of the image's size, 8 × 8 .* got 4 × 6"):
        run("ImageOverlay", image=red, mode="solid", opacity=1.0, mask=torch.zeros(1, 6, 4))


def test_two_loss_nodes_make_two_critics(run, demo_models, loss, pack):
    from importlib import import_module

    other = run("VLMQuestion", question="Is it night?", answer="No", weight=2.0)[0]
    both = run("VQALoss", critic=demo_models[3], questions={"question0": other}, loss=loss)[0]
    node = import_module(f"{pack.__name__}.nodes.distill_sockets")
    critics, recipe = node.make_recipe(both, {"stop_probability": 1.0})
    assert list(critics) == ["default", "critic 2"]
    assert [(q.critic, q.answer, q.weight) for q in recipe.questions] == [
        ("default", "Yes", 1.0),
        ("critic 2", "No", 2.0),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_steps": 0}, "train_steps .* at least 1"),
        ({"latent": {"samples": torch.ones(1, 4, 8, 8)}}, "LATENT of 16 channels"),
        ({"cfg": 3.0}, "negative CONDITIONING"),
        ({"conditionings": {}}, "at least one CONDITIONING"),
    ],
)
def test_bad_input_says_what_to_change(distil, changes, message):
    with pytest.raises(Exception, match=message):
        distil(**changes)


def test_a_vae_of_another_model_is_refused(distil, demo_models):
    import copy

    vae = copy.copy(demo_models[2])
    vae.latent_channels = 4
    with pytest.raises(Exception, match="latents of 16 channels, but the VAE on 4"):
        distil(vae=vae)
