"""A node and the command line say the same things of a run, here on one random Flux and one random critic."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_models import SIZE, build_pipeline, conditionings, write_files
from node_inputs import SETTINGS
from tiny_flux import PROMPTS
from tiny_models import FAMILIES
from typer.testing import CliRunner

from dual_process.cli import app
from dual_process.core.tensor_file import read_tensors
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.diffusers.loading import encode_prompts

pytestmark = pytest.mark.comfyui
OUTCOMES = ("learned", "damaged", "hacked", "not learned")
CONTROL, KEEP = "is the picture mostly red ?", "is this image dark ?"
RECIPE = f"""
prompts = {json.dumps(PROMPTS)}
held_out = ["a blue sea"]
train_steps = 2
learning_rate = 5e-4
height = {SIZE}
width = {SIZE}
num_inference_steps = 2

[[questions]]
text = "{CONTROL}"

[[questions]]
text = "{KEEP}"
answer = "as before"
role = "keep"
weight = 0.3

[penalties]
anchors = 1.0

[anchors]
pool = 2
"""


@pytest.fixture
def critic_folder(comfy, tmp_path):
    """A critic where ComfyUI finds it, as long as the test lasts."""
    link = comfy / "models" / "VLM" / "tiny-random"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(FAMILIES["qwen"](tmp_path / "critic"))
    yield link
    link.unlink()


@pytest.fixture
def by_node(run, comfy, critic_folder):
    """The verdict in the file that Save Distilled LoRA writes, and the text that the node shows."""
    import folder_paths

    import nodes as core

    unet, vae = write_files(comfy / "models", "schnell")
    with torch.inference_mode():
        (model,) = core.UNETLoader().load_unet(unet.name, "default")
        (vae,) = core.VAELoader().load_vae(vae.name)
    pipeline = build_pipeline("schnell")
    encoded = encode_prompts(FLUX, pipeline, PROMPTS, pipeline.transformer.config, torch.device("cpu"))
    critic = run("LoadVLMCritic", model=critic_folder.name, dtype="float32", device="cpu")[0]
    control = run("VLMQuestion", question=CONTROL, answer="Yes", weight=1.0)[0]
    keep = run("KeepQuestion", question=KEEP, answer="as before", weight=0.3)[0]
    lora, _, _, _, text = run(
        "DistillLoRA",
        model=model,
        vae=vae,
        conditionings={f"conditioning{i}": c for i, c in enumerate(conditionings(prompts=encoded))},
        latent={"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)},
        loss=run("VQALoss", critic=critic, questions={"question0": control, "question1": keep})[0],
        **{**SETTINGS, "train_steps": 2, "steps": 2, "anchor_weight": 1.0, "anchor_pool": 2},
    ).args
    name = run("SaveDistilledLoRA", lora=lora, name="random", format="diffusers")[0]
    return written(folder_paths.get_full_path("loras", name)), text


@pytest.fixture
def by_command(critic_folder, tmp_path):
    """The verdict in the LoRA's file, and report.json."""
    build_pipeline("schnell").save_pretrained(tmp_path / "pipeline")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folders = ["--generator", str(tmp_path / "pipeline"), "--critic", str(critic_folder)]
    call = ["train", str(tmp_path / "recipe.toml"), *folders, "--output", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    return written(tmp_path / "lora.safetensors"), json.loads((tmp_path / "report.json").read_text())


def written(path):
    return json.loads(read_tensors(path)[1]["dual_process.verdict"])


def kinds(value):
    """The types of all values, by their keys."""
    return {key: kinds(part) for key, part in value.items()} if isinstance(value, dict) else type(value)


def test_the_fields_of_a_verdict_are_the_same(by_node, by_command):
    (ours, text), (theirs, report) = by_node, by_command
    reported = {name: report[name] for name in theirs}
    assert reported == theirs
    assert kinds(reported) == kinds(theirs)
    assert ours["verdict"] == text
    for verdict in (ours, theirs):
        assert verdict["outcome"] in OUTCOMES
        assert all(isinstance(name, str) for name in verdict["lost"])
    measures = dict.fromkeys(theirs["after"], float)
    assert {"p_answer", "p_answer_other_size", "p_keep", "high_frequency_other_size", "diversity"} <= {*measures}
    fields = {"outcome": str, "verdict": str, "lost": list, "before": measures, "after": measures}
    assert kinds(ours) == kinds(theirs) == fields
