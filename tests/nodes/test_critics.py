"""Critics among ComfyUI's models: shared, moved, freed, quantised, and taking turns with the generator."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from node_inputs import QUESTION

pytestmark = pytest.mark.comfyui
LOAD = {"model": "someone/tiny-critic", "dtype": "auto", "device": "cpu"}
IMAGE = torch.rand(1, 112, 112, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def critic(run, vlm_folder):
    return run("LoadVLMCritic", **LOAD)[0]


@pytest.fixture
def question(run):
    overlay = run("HorizonOverlay", position=0.31, color="#ff0000", thickness=0.02)[0]
    return run("VLMQuestion", question=QUESTION, answer="Yes", weight=1.0, overlay=overlay)[0]


@pytest.fixture
def loss_of(run, question):
    def make(critic):
        return run("VQALoss", critic=critic, questions={"question0": question})[0]

    return make


def test_load_vlm_critic_lists_vlms_and_shares_them(run, nodes, comfy, vlm_folder):
    text_only = comfy / "models" / "LLM" / "text-only"
    text_only.mkdir(parents=True, exist_ok=True)
    (text_only / "config.json").write_text('{"model_type": "llama"}')
    for name, config in {"number": "5", "text": '"vision_config"', "broken": "{"}.items():
        (comfy / "models" / "VLM" / name).mkdir(exist_ok=True)
        (comfy / "models" / "VLM" / name / "config.json").write_text(config)
    for name, architecture in {"sees-only": "CLIPModel", "no-weights": "LlavaForConditionalGeneration"}.items():
        (comfy / "models" / "VLM" / name).mkdir(exist_ok=True)
        settings = {"vision_config": {}, "architectures": [architecture]}
        (comfy / "models" / "VLM" / name / "config.json").write_text(json.dumps(settings))
    (comfy / "models" / "VLM" / "sees-only" / "model.safetensors").touch()
    in_parts = comfy / "models" / "VLM" / "one-part-missing"
    in_parts.mkdir(exist_ok=True)
    settings = {"vision_config": {}, "architectures": ["LlavaForConditionalGeneration"]}
    (in_parts / "config.json").write_text(json.dumps(settings))
    (in_parts / "model-1.safetensors").touch()
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (in_parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    schema = nodes["DualProcessLoadVLMCritic"].define_schema()
    assert schema.inputs[0].options == ["someone/tiny-critic"]
    load = {"model": "someone/tiny-critic", "dtype": "auto", "device": "cpu"}
    first, second = run("LoadVLMCritic", **load)[0], run("LoadVLMCritic", **load)[0]
    assert first is second
    assert run("LoadVLMCritic", **{**load, "dtype": "bfloat16"})[0] is not first
    with pytest.raises(Exception, match="vision-language model below models/VLM"):
        run("LoadVLMCritic", **{**load, "model": "text-only"})


def test_a_critic_loaded_and_asked_in_inference_mode_can_train(run, distil, vlm_folder, demo_models):
    critic = run("LoadVLMCritic", model="someone/tiny-critic", dtype="auto", device="cpu")[0]
    overlay = run("HorizonOverlay", position=0.31, color="#ff0000", thickness=0.02)[0]
    question = run("VLMQuestion", question=QUESTION, answer="Yes", weight=1.0, overlay=overlay)[0]
    image = torch.rand(1, 112, 112, 3)
    run("ApplyOverlay", image=image, overlay=overlay)
    run("AskVLMCritic", critic=critic, image=image, questions={"question0": question}, max_new_tokens=2)
    loss = run("VQALoss", critic=critic, questions={"question0": question})[0]
    assert len(distil(loss=loss)[1]["loss"]) == 3


def test_comfyui_moves_the_critic_and_frees_it(run, critic, question, distil, loss_of):
    import comfy.model_management as management

    def is_loaded():
        return critic.patcher in management.loaded_models()

    management.unload_all_models()
    assert not is_loaded()
    run("AskVLMCritic", critic=critic, image=IMAGE, questions={"question0": question}, max_new_tokens=2)
    assert is_loaded()
    with torch.inference_mode():  # as ComfyUI does amid other nodes
        management.unload_all_models()
    assert not is_loaded()
    assert len(distil(loss=loss_of(critic))[1]["loss"]) == 3
    assert is_loaded()


def test_weights_are_moved_outside_inference_mode(critic, monkeypatch):
    """Else they could never take part in a gradient again."""
    import comfy.model_management as management

    modes, ours = [], set(critic.patcher.model.modules())
    move = torch.nn.Module.to

    def watched(module, *args, **kwargs):
        if module in ours:
            modes.append(torch.is_inference_mode_enabled())
        return move(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    with torch.inference_mode():
        management.unload_all_models()
        management.load_models_gpu([critic.patcher])
        critic.patcher.partially_unload(critic.patcher.offload_device, 1e9)
        management.unload_all_models()
    assert modes
    assert not any(modes)


def test_a_critic_that_nobody_holds_is_gone(run, vlm_folder):
    critic = run("LoadVLMCritic", **{**LOAD, "dtype": "float16"})[0]
    patcher, model = weakref.ref(critic.patcher), weakref.ref(critic._critic.model)
    with critic.resident():
        pass
    del critic
    gc.collect()
    assert patcher() is None
    assert model() is None


def test_turns_train_the_same_lora(distil, critic, loss_of, pack, monkeypatch):
    """And the generator lets go of its weights while the critic works, and the critic is taken away after it."""
    import comfy.model_management as management

    together = distil(loss=loss_of(critic), memory="keep both loaded")[0]
    kind = sys.modules[f"{pack.__name__}.generators.comfy.generator"].ComfyGenerator
    making, judged_amid, critic_is_here = [], [], []
    training, log_likelihood = kind.training, critic.log_likelihood

    @contextmanager
    def watched_training(self, in_turns=False):
        making.append(True)
        with training(self, in_turns):
            critic_is_here.append(critic.patcher in management.loaded_models())
            yield self
        making.pop()

    def watched_log_likelihood(*args):
        judged_amid.append(bool(making))
        return log_likelihood(*args)

    monkeypatch.setattr(kind, "training", watched_training)
    monkeypatch.setattr(critic, "log_likelihood", watched_log_likelihood)
    in_turns = distil(loss=loss_of(critic), memory="take turns")[0]
    assert len(judged_amid) > 3  # the pictures before and after training are judged, too
    assert not any(judged_amid)
    assert critic_is_here == [False] * 6
    for name, tensor in together.items():
        assert (in_turns[name] - tensor).norm() <= 1e-5 * tensor.norm(), name
    in_turns_calls = len(judged_amid)
    distil(loss=loss_of(critic))  # auto, on a CPU
    assert sum(judged_amid[in_turns_calls:]) == 3  # the steps; the pictures before and after are judged outside
    assert critic_is_here == [False] * 6 + [True]


@pytest.fixture
def room(pack, monkeypatch):
    """Makes a device that is no CPU, of so many bytes; the function that decides."""
    import comfy.model_management as management

    def pretend(size):
        monkeypatch.setattr(management, "is_device_cpu", lambda _: False)
        monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1000)
        monkeypatch.setattr(management, "get_total_memory", lambda _: size)

    return pretend


def test_turns_are_taken_where_the_device_is_too_small(critic, demo_models, pack, room):
    import comfy.model_management as management

    node = sys.modules[f"{pack.__name__}.nodes.training"]
    vae = demo_models[2]
    generator = SimpleNamespace(model=demo_models[0], vaes=[vae], working_memory=lambda batch: 5000 * batch)
    critics = {"default": critic, "demo": demo_models[3]}
    assert node.fit_together(generator, critics, 1)
    painters = demo_models[0].model_size() + demo_models[2].patcher.model_size()
    judges = [critic.patcher.model_size(), management.module_size(demo_models[3].model)]  # ComfyUI doesn't move it
    for batch in (1, 3):
        needed = painters + sum(judges) + 0.4 * batch * max(judges) + 5000 * batch + 1000
        for spare, fits in ((10, True), (-10, False)):
            room(needed + spare)
            assert node.fit_together(generator, critics, batch) == fits


def test_larger_pictures_and_batches_need_more_room(critic, demo_models, pack, encode, room, monkeypatch):
    node = sys.modules[f"{pack.__name__}.nodes.training"]
    kind = sys.modules[f"{pack.__name__}.generators.comfy.generator"].ComfyGenerator
    model, _, vae, _ = demo_models
    text, critics = encode("a day sky over the sea"), {"default": critic}

    def fits(side=14, batch=1, cfg=1.0, checkpointing=True):
        generator = kind(
            *(model, vae, [text]),
            latent={"samples": torch.zeros(1, 16, side, side)},
            negative=text,
            cfg=cfg,
            gradient_checkpointing=checkpointing,
        )
        return node.fit_together(generator, critics, batch)

    # ComfyUI's formulas for a pass without gradient, of a picture of 14 × 14 latent pixels.
    area = 14 * 14
    network, decoder = area * 0.15 * model.model.memory_usage_factor * 2**20, 2178 * area * 64 * 4
    assert vae.memory_used_decode((1, 16, 14, 14), torch.float32) == decoder
    weights = model.model_size() + vae.patcher.model_size() + critic.patcher.model_size()
    room(weights + 0.4 * critic.patcher.model_size() + 3 * network + 2.7 * decoder + 1000 + 10)
    assert fits()
    assert not fits(side=16)
    assert not fits(batch=2)
    assert not fits(cfg=2.0)
    assert not fits(checkpointing=False)
    room(weights + 0.8 * critic.patcher.model_size() + 6 * network + 5.4 * decoder + 1000 + 10)
    assert fits(batch=2)
    monkeypatch.setattr(vae, "device", torch.device("meta"))  # elsewhere: it takes nothing here
    room(weights + 0.4 * critic.patcher.model_size() + 3 * network + 1000 + 10)
    assert fits()


def test_a_contrast_is_asked_too(run, distil, critic, monkeypatch):
    asked, log_likelihood = [], critic.log_likelihood

    def watched(images, questions):
        asked.append([(q.text, q.answer) for q in questions])
        return log_likelihood(images, questions)

    monkeypatch.setattr(critic, "log_likelihood", watched)
    question = run("VLMQuestion", question="Is it day?", answer="Yes", weight=1.0, contrast=" No ")[0]
    loss = run("VQALoss", critic=critic, questions={"question0": question})[0]
    assert len(distil(loss=loss)[1]["loss"]) == 3
    assert len(asked) > 3  # the pictures before and after training are judged, too
    assert all(both == [("Is it day?", "Yes"), ("Is it day?", "No")] for both in asked)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_critic_trains(run, distil, vlm_folder, loss_of, quantization):
    pytest.importorskip("bitsandbytes")
    critic = run("LoadVLMCritic", **LOAD, quantization=quantization, gradient_checkpointing=True)[0]
    assert len(distil(loss=loss_of(critic))[1]["loss"]) == 3
    assert critic.info.dtype == f"{quantization}, float32"
    management = import_module("comfy.model_management")
    assert critic.patcher in management.loaded_models()
    management.unload_all_models()
    assert critic.patcher not in management.loaded_models()
    assert len(distil(loss=loss_of(critic))[1]["loss"]) == 3


def test_a_download_is_made_once_and_only_if_asked_for(run, nodes, comfy, vlm_folder, pack, monkeypatch):
    fetched = []

    def download(repository, folder, is_wanted, on_progress):
        fetched.append(repository)
        assert is_wanted({"vision_config": {}, "architectures": ["LlavaForConditionalGeneration"]})
        assert not is_wanted({"architectures": ["LlamaForCausalLM"]})
        on_progress(1, 2)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(vlm_folder.resolve())

    module = import_module(f"{pack.__name__}.critics.downloading")
    monkeypatch.setattr(module, "download_folder", download)
    node = nodes["DualProcessLoadVLMCritic"]
    assert node.validate_inputs("nowhere") is not True
    assert node.validate_inputs("nowhere", "hub/tiny") is True
    assert node.validate_inputs("nowhere", None) is True  # linked
    before = node.fingerprint_inputs("nowhere", "hub/tiny")
    first = run("LoadVLMCritic", **{**LOAD, "model": "nowhere"}, download="hub/tiny")[0]
    assert fetched == ["hub/tiny"]
    assert node.fingerprint_inputs("nowhere", "hub/tiny") == before  # so that nothing is trained again
    again = run("LoadVLMCritic", **{**LOAD, "model": "hub/tiny"})[0]
    assert again is first
    assert run("LoadVLMCritic", **LOAD, download="hub/tiny")[0] is first
    assert fetched == ["hub/tiny"]
    with pytest.raises(Exception, match="Hugging Face id such as"):
        run("LoadVLMCritic", **LOAD, download="../elsewhere")
    (comfy / "models" / "VLM" / "hub" / "tiny").unlink()


def test_weights_in_mistrals_own_format_do_not_count(pack, nodes, vlm_folder, comfy):
    folders = import_module(f"{pack.__name__}.nodes.folders")
    mistral = comfy / "models" / "VLM" / "mistral"
    mistral.mkdir()
    try:
        (mistral / "consolidated.safetensors").write_bytes(b"1")
        (mistral / "config.json").symlink_to((vlm_folder / "config.json").resolve())
        assert "mistral" not in folders.critic_folders()
        (mistral / "model.safetensors").symlink_to((vlm_folder / "model.safetensors").resolve())
        assert "mistral" in folders.critic_folders()
        before = folders.fingerprint(mistral)
        (mistral / "consolidated.safetensors").write_bytes(b"more")
        assert folders.fingerprint(mistral) == before
    finally:
        shutil.rmtree(mistral)


def test_quantised_weights_make_room_for_what_is_read(pack, vlm_folder, tmp_path, monkeypatch):
    managed = import_module(f"{pack.__name__}.critics.comfy.managed")
    shutil.copyfile(vlm_folder / "model.safetensors", tmp_path / "model.safetensors")
    shutil.copyfile(vlm_folder / "model.safetensors", tmp_path / "consolidated.safetensors")
    asked = []
    monkeypatch.setattr(managed.comfy.model_management, "free_memory", lambda size, place: asked.append(size))
    monkeypatch.setattr(managed, "load_critic", lambda *_, **__: SimpleNamespace(arrange=lambda *_: None))
    monkeypatch.setattr(managed, "ManagedCritic", lambda critic: critic)
    managed.load_managed_critic(tmp_path, "cpu", None, "8bit", False)
    assert asked == [(vlm_folder / "model.safetensors").stat().st_size]


def test_folders_of_extra_model_paths_are_scanned(nodes, vlm_folder, tmp_path):
    import folder_paths
    from utils.extra_config import load_extra_path_config

    (tmp_path / "elsewhere" / "another-critic").mkdir(parents=True)
    for file in vlm_folder.iterdir():
        (tmp_path / "elsewhere" / "another-critic" / file.name).symlink_to(file.resolve())
    settings = tmp_path / "extra_model_paths.yaml"
    settings.write_text(f"mine:\n    base_path: {tmp_path}\n    LLM: elsewhere\n")
    known = folder_paths.folder_names_and_paths["LLM"][0]
    before = list(known)
    try:
        load_extra_path_config(str(settings))
        options = nodes["DualProcessLoadVLMCritic"].define_schema().inputs[0].options
        assert set(options) >= {"another-critic", "someone/tiny-critic"}
    finally:
        known[:] = before
