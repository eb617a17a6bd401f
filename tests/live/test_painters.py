"""Painters of every mode in a live ComfyUI, on tiny random models of the real classes: plan, paint, inspect, save."""

from __future__ import annotations

import json

import pytest
import torch
from graphs import PROCESS, Graph, node
from live_server import Server
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_comfy import flux_weights

pytestmark = pytest.mark.comfyui
WIDTH, HEIGHT = 96, 64
PLAN = {
    "description": "a blue house far left and a white ball near right by day",
    "background": "an empty field by day",
    "facts": [
        {"id": "f1", "question": "Is there a blue house far left in the image?", "stroke": "s1"},
        {"id": "f2", "question": "Is there a white ball near right in the image?", "stroke": "s2"},
    ],
    "strokes": [
        {
            "id": "s1",
            "operation": "add",
            "instruction": "add a blue house far left",
            "local_prompt": "a blue house",
            "region": [0, 0, 0.5, 1],
        },
        {
            "id": "s2",
            "operation": "add",
            "instruction": "add a white ball near right",
            "local_prompt": "a white ball",
            "region": [0.5, 0, 1, 1],
        },
    ],
}
FILES = {"Flux": 64, "Flux Fill": 384}  # channels: what core's loader loads, with the demo's CLIP and VAE
CASES = [
    ("Flux", "inpaint"),
    ("Flux Fill", "inpaint"),
    ("Stable Diffusion, inpainting", "inpaint"),
    ("Flux", "reference"),
    ("FLUX.2", "reference"),
    ("Qwen-Image", "qwen edit"),
    ("Qwen-Image", "qwen edit plus"),
]


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    """Tiny random Flux models for UNETLoader."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    for name, channels in FILES.items():
        save_file(flux_weights(channels), folder / f"{name}.safetensors")


def graph(kind: str, mode: str) -> Graph:
    """Two strokes on an empty scene, each kept whatever comes of it: the models have learnt nothing."""
    if kind in FILES:
        loader = node("UNETLoader", unet_name=f"{kind}.safetensors", weight_dtype="default")
        parts = {"model": ["models", 0], "clip": ["demo", 1], "vae": ["demo", 2]}
    else:
        loader = node("TestTinyModels", kind=kind)
        parts = {name: ["models", output] for output, name in enumerate(("model", "clip", "vae"))}
    sampling = {"steps": 2, "cfg": 1.0, "sampler": "euler", "scheduler": "simple", "negative": "", "guidance": 2.5}
    size = {"width": WIDTH, "height": HEIGHT, "denoise": 1.0, "denoise_whole": 0.6, "grow": 0}
    return {
        "demo": node("DualProcessLoadDemoStrokes"),
        "models": loader,
        "painter": node("DualProcessPainter", **parts, mode=mode, **size, **sampling),
        "plan": node("DualProcessPlanImage", prompt="a blue house and a white ball", own_plan=json.dumps(PLAN)),
        "paint": node(
            "DualProcessPaintByProcess",
            **{"painter": ["painter", 0], "critic": ["demo", 3], "plan": ["plan", 0], "prompt": ""},
            **{**PROCESS, "budget": 3, "refinements": 0, "roll_back": False},
        ),
        "decode": node("VAEDecode", samples=["paint", 1], vae=parts["vae"]),
        "picture": node("PreviewImage", images=["paint", 0]),
        "decoded": node("PreviewImage", images=["decode", 0]),
        "save": node("DualProcessSaveTrajectory", trajectory=["paint", 2], name="painters"),
    }


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("kind", "mode"), CASES, ids=[f"{kind}-{mode}" for kind, mode in CASES])
def test_strokes_change_their_region_and_nothing_else(server: Server, kind: str, mode: str) -> None:
    outputs = server.run(graph(kind, mode))
    folder = server.picture(outputs["save"]["images"][0]).parent
    made = json.loads((folder / "trajectory.json").read_text())
    assert f"mode {mode}, width {WIDTH}, height {HEIGHT}, steps 2" in made["models"]["painter"]["settings"]
    assert made["plan"]["source"] == "user"
    draft, *strokes = made["steps"]
    assert [draft["ins"], *(step["ins"] for step in strokes)] == [
        PLAN["background"],
        *(stroke["instruction"] for stroke in PLAN["strokes"]),
    ]
    assert all(step["mask"] and step["accepted"] for step in strokes)
    latents = load_file(folder / "latents.safetensors")
    empty, first, second = (latents[step["picture"]] for step in made["steps"])
    half = empty.shape[-1] // 2
    assert torch.equal(first[..., half:], empty[..., half:])
    assert torch.equal(second[..., :half], first[..., :half])
    for before, after in ((empty[..., :half], first[..., :half]), (first[..., half:], second[..., half:])):
        assert (after != before).float().mean() > 0.9
    shown, decoded = (Image.open(server.picture(outputs[key]["images"][0])) for key in ("picture", "decoded"))
    assert shown.size == (WIDTH, HEIGHT)
    assert distance(shown, decoded) <= 1
    pictures = [Image.open(folder / f"{step['picture']}.png").convert("RGB") for step in made["steps"]]
    assert distance(shown, pictures[made["best"]]) == 0
    assert distance(pictures[0], pictures[2]) > 1


def distance(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel, 0 to 255."""
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("kind", "mode", "message"),
    [
        ("Stable Diffusion", "reference", "which knows no reference latents. Load one that edits by reference"),
        ("Flux", "qwen edit", "The mode 'qwen edit' needs a Qwen-Image-Edit MODEL, got a Flux."),
        ("Stable Diffusion", "qwen edit plus", "or choose the mode 'inpaint'"),
    ],
)
def test_a_mode_that_the_model_does_not_know_is_refused(server: Server, kind: str, mode: str, message: str) -> None:
    assert message in server.error(graph(kind, mode))
