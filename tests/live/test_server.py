"""Whole graphs on a real ComfyUI server, through its API."""

from __future__ import annotations

import json
import urllib.request

import comfyui
import numpy as np
import pytest
import torch
from graphs import HELD_OUT, distil, node, pictures
from live_server import PACK, PATIENCE
from PIL import Image
from safetensors import safe_open

from dual_process.evaluation.measures import horizon_position

pytestmark = pytest.mark.comfyui
LINE = 0.3


def test_help_pages_and_templates_are_served(server):
    templates = server.get("/workflow_templates")[PACK]
    assert set(templates) == {path.stem for path in (comfyui.ROOT / "workflows").glob("*.json")}
    for page in (comfyui.ROOT / "web" / "docs").glob("*.md"):
        with urllib.request.urlopen(f"{server.address}/extensions/{PACK}/docs/{page.name}", timeout=PATIENCE) as answer:
            assert answer.read() == page.read_bytes()
    assert "could not be loaded" not in server.log()


def load_pictures(server, outputs) -> torch.Tensor:
    files = [server.picture(image) for key in sorted(outputs) for image in outputs[key].get("images", [])]
    arrays = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)  # BHWC -> BCHW


def horizon_error_px(images: torch.Tensor) -> float:
    return float((horizon_position(images) - LINE).abs().mean() * images.shape[-2])


@pytest.fixture(scope="module")
def trained(server):
    """The horizon workflow, run once; its outputs."""
    outputs = server.run(distil(), seconds=3 * PATIENCE)
    again = server.finish(server.queue(distil()))
    return {**outputs, "cached": cached(again)}


def cached(entry):
    """The nodes that a run took from ComfyUI's cache."""
    return next(set(data["nodes"]) for name, data in entry["status"]["messages"] if name == "execution_cached")


def test_the_saved_lora_moves_the_horizon_in_a_plain_graph(server, trained):
    name = trained["save"]["text"][0].removeprefix("saved as ")
    seeds = range(1000, 1012)
    before = horizon_error_px(load_pictures(server, server.run(pictures(HELD_OUT, seeds))))
    after = horizon_error_px(load_pictures(server, server.run(pictures(HELD_OUT, seeds, name))))
    print(f"horizon error {before:.2f} -> {after:.2f} px")
    assert before > 10
    assert after < 2
    assert "lora key not loaded" not in server.log()
    assert "NOT LOADED" not in server.log()


def test_the_file_says_how_it_was_made(server, trained):
    name = trained["save"]["text"][0].removeprefix("saved as ")
    with safe_open(server.base / "models" / "loras" / name, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["prompt"])["distil"]["inputs"]["train_steps"] == 160
    recipe = json.loads(metadata["dual_process.recipe"])
    assert recipe["questions"][0]["overlay"][0] == {
        "kind": "horizon",
        "position": LINE,
        "thickness": 0.02,
        "color": "#ff0000",
    }
    assert json.loads(metadata["dual_process.base_model"])["architecture"] == "flux-1-schnell"


def test_the_same_graph_is_cached(trained):
    assert {"distil", "save", "demo", "loss"} <= trained["cached"]


def test_another_seed_trains_again_and_nothing_else(server):
    server.run(distil(seed=1, train_steps=2))
    entry = server.finish(server.queue(distil(seed=2, train_steps=2)))
    assert "distil" not in cached(entry)
    assert {"demo", "loss", "overlay", "text0", "latent"} <= cached(entry)


def test_a_plain_picture_is_the_same_before_and_after_runs(server):
    graph = pictures(["a day sky over the sea"], range(3))
    fresh = {key: {**value, "inputs": {**value["inputs"]}} for key, value in graph.items()}
    before = load_pictures(server, server.run(graph))
    server.run(distil(train_steps=2, seed=77))
    for value in fresh.values():  # other file names, so that nothing is cached
        if value["class_type"] == "SaveImage":
            value["inputs"]["filename_prefix"] += "again"
    assert torch.equal(load_pictures(server, server.run(fresh)), before)


def test_cancel_keeps_the_lora_so_far_and_the_next_run_works(server):
    folder = server.base / "models" / "loras" / "dual_process" / "interrupted"
    before = set(folder.glob("*"))
    prompt = server.queue(distil(train_steps=5000, seed=5))
    server.wait(lambda: server.get("/test/progress").get("distil", [0])[0] >= 2, "train two steps")
    server.post("/interrupt", {})
    entry = server.finish(prompt)
    assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
    (lora,) = set(folder.glob("*")) - before
    with safe_open(lora, "pt") as file:
        assert 0 < json.loads(file.metadata()["dual_process.history"])["steps"] < 5000
    assert list((server.base / "output" / "dual_process" / "runs").glob("*/checkpoint_*.safetensors"))
    assert server.run(distil(train_steps=2, seed=6))["after"]["images"]


def test_ten_runs_do_not_grow_the_server(server):
    for seed in range(200, 203):  # until caches and pools are filled
        server.run(distil(train_steps=2, seed=seed))
    before = server.resident_bytes()
    for seed in range(300, 310):
        server.run(distil(train_steps=2, seed=seed))
    growth = server.resident_bytes() / before - 1
    print(f"resident memory of the server grew by {growth:.1%} in ten runs")
    assert growth < 0.05


def test_core_nodes_take_our_outputs(server):
    graph = distil(train_steps=4, seed=9)
    graph["graph"] = node("LossGraphNode", loss=["distil", 1], filename_prefix="loss")
    graph["core_save"] = node("SaveLoRA", lora=["distil", 0], prefix="loras/core")
    graph["compare"] = node("ImageCompare", image_a=["distil", 2], image_b=["distil", 3], compare_view="horizontal")
    graph["load"] = node("LoraModelLoader", model=["demo", 0], lora=["distil", 0], strength_model=1.0, bypass=False)
    graph["sample"] = node(
        "KSampler",
        **{"model": ["load", 0], "positive": ["text0", 0], "negative": ["text0", 0], "latent_image": ["latent", 0]},
        **{"seed": 9, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )
    graph["decode"] = node("VAEDecode", samples=["sample", 0], vae=["demo", 2])
    graph["shown"] = node("PreviewImage", images=["decode", 0])
    outputs = server.run(graph)
    loaded = load_pictures(server, {"shown": outputs["shown"]})[0]
    after = load_pictures(server, {"after": outputs["after"]})[0]
    assert torch.allclose(loaded, after, atol=1.5 / 255)  # both went through 8-bit files
    assert outputs["graph"]["images"]
    assert list((server.base / "output" / "loras").glob("core_*.safetensors"))


def test_asking_shows_text_and_picture(server):
    graph = pictures(["a night sky over the sea"], range(1))
    graph["q"] = node("DualProcessVLMQuestion", question="Is it night?", answer="Yes", weight=1.0)
    graph["ask"] = node(
        "DualProcessAskVLMCritic",
        critic=["demo", 3],
        image=["decode0_0", 0],
        max_new_tokens=4,
        **{"questions.question0": ["q", 0]},
    )
    outputs = server.run(graph)["ask"]
    assert "Is it night? → Yes" in outputs["text"][0]
    assert outputs["images"]


def change(graph, key, **inputs):
    return {**graph, key: {**graph[key], "inputs": {**graph[key]["inputs"], **inputs}}}


def without(graph, key, name):
    inputs = {k: v for k, v in graph[key]["inputs"].items() if k != name}
    return {**graph, key: {**graph[key], "inputs": inputs}}


NO_VLM = "(no VLM found: put a model folder into models/VLM)"
NO_CRITIC = {"none": node("DualProcessLoadVLMCritic", model=NO_VLM, dtype="auto", device="cpu")}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda g: without(g, "distil", "loss"), "loss"),
        (lambda g: without(change(g, "question", question="   "), "question", "overlay"), "The question is empty"),
        (lambda g: change(g, "distil", train_steps=0), "train_steps"),
        (lambda g: change(g, "distil", cfg=5.0), "negative CONDITIONING"),
        (lambda g: change(g, "save", name="../../evil"), "below models/loras"),
        (lambda g: change(g, "save", name="/tmp/evil"), "below models/loras"),
        (lambda g: change({**g, **NO_CRITIC}, "loss", critic=["none", 0]), "models/VLM"),
    ],
    ids=["missing socket", "empty question", "zero steps", "no negative", "dots", "absolute", "no critic"],
)
def test_bad_input_is_explained_and_leaves_the_server_healthy(server, broken, message):
    assert message in server.error(broken(distil(train_steps=2, seed=123)))
    assert server.get("/system_stats")


def test_comfyui_knows_what_the_old_training_node_becomes(server):
    (entry,) = server.get("/node_replacements")["DualProcessDistillLoRA"]
    assert entry["new_node_id"] == "DualProcessDistill"
    named = {pair["new_id"] for pair in entry["input_mapping"]}
    assert {"model", "vae", "loss", "train_steps", "seed"} <= named
    schemas = [server.get(f"/object_info/{node}")[node] for node in ("DualProcessDistillLoRA", "DualProcessDistill")]
    for pair in entry["output_mapping"]:
        assert schemas[0]["output_name"][pair["old_idx"]] == schemas[1]["output_name"][pair["new_idx"]]
