"""A graph as a newcomer builds it: seven nodes, every setting left alone. Minutes: `python -m pytest -m long`."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import Graph, node
from live_server import PATIENCE, Server

from dual_process import demo
from dual_process.core.tensor_file import read_tensors
from dual_process.demo.controls import horizon_control
from dual_process.demo.fidelity import true_pictures
from dual_process.demo.world import LATENT_CHANNELS, LATENT_SIZE, scenes_from_noise, with_horizon
from dual_process.evaluation.fidelity import against_truth
from dual_process.evaluation.measures import horizon_position
from dual_process.generators.noise import draw_noise

pytestmark = [pytest.mark.comfyui, pytest.mark.long]
PAIRS = 36


def with_defaults(server: Server, class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node whose widgets hold what the frontend fills in."""
    schema = server.get(f"/object_info/{class_type}")[class_type]["input"]
    widgets = {}
    for name, (kind, *options) in {**schema.get("required", {}), **schema.get("optional", {})}.items():
        found = options[0] if options else {}
        if "default" in found:
            widgets[name] = found["default"]
        elif kind == "COMBO":
            widgets[name] = found["options"][0]
    return node(class_type, **{**widgets, **inputs})


def test_seven_nodes_at_their_defaults_learn(server: Server) -> None:
    parts: dict[str, dict[str, Any]] = {
        "demo": {"class_type": "LoadDemoModels"},
        "prompts": {"class_type": "TrainingPrompts", "clip": ["demo", 1]},
        "overlay": {"class_type": "HorizonOverlay"},
        "question": {"class_type": "VLMQuestion", "overlay": ["overlay", 0]},
        "loss": {"class_type": "VQALoss", "critic": ["demo", 3], "questions.question0": ["question", 0]},
        "distill": {
            "class_type": "Distill",
            **{"model": ["demo", 0], "vae": ["demo", 2], "prompts": ["prompts", 0], "loss": ["loss", 0]},
        },
        "save": {"class_type": "SaveDistilledLoRA", "lora": ["distill", 0]},
    }
    graph: Graph = {
        key: with_defaults(server, f"DualProcess{part.pop('class_type')}", **part) for key, part in parts.items()
    }
    name = server.run(graph, seconds=3 * PATIENCE)["save"]["text"][0].removeprefix("saved as ")
    line = graph["overlay"]["inputs"]["position"]
    held_out = horizon_control().held_out
    prompts = [held_out[i % len(held_out)] for i in range(PAIRS)]
    seeds = [(1 << 41) + i for i in range(PAIRS)]
    generator, _ = demo.load(held_out)
    generator.load_lora_state_dict(read_tensors(server.base / "models" / "loras" / name)[0])
    images = generator.sample([i % len(held_out) for i in range(PAIRS)], seeds, lora_scale=1.0)
    scenes = scenes_from_noise(prompts, draw_noise(seeds, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
    found = against_truth(images, true_pictures(with_horizon(scenes, line)), prompts)
    error = float((horizon_position(images) - line).abs().mean() * images.shape[-2])
    print(f"horizon error {error:.2f} px, {found}")
    assert error <= 1.5
    assert found["object_presence"] >= 0.7
