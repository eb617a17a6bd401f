"""A graph as a newcomer builds it, by hand: seven nodes, every setting left alone. `python -m pytest -m long`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hands import Hands
from live_server import PATIENCE, Server

from dual_process import demo
from dual_process.core.tensor_file import read_tensors
from dual_process.demo.controls import horizon_control
from dual_process.demo.fidelity import true_pictures
from dual_process.demo.world import LATENT_CHANNELS, LATENT_SIZE, scenes_from_noise, with_horizon
from dual_process.evaluation.fidelity import against_truth
from dual_process.evaluation.measures import horizon_position
from dual_process.generators.noise import draw_noise

pytestmark = [pytest.mark.comfyui, pytest.mark.browser, pytest.mark.long]
PAIRS = 36
WIDE = "() => { Object.assign(window.app.canvas.ds, { scale: 0.65, offset: [100, 60] }); }"  # by the mouse wheel
SAVED = "document.querySelector('.dp-saved').textContent"


def test_seven_nodes_at_their_defaults_learn(server: Server, page: Any, tmp_path: Path) -> None:
    """Seven nodes, by search and by dragging from sockets."""
    page.evaluate("() => window.app.graph.clear()")
    page.evaluate(WIDE)
    page.wait_for_timeout(1000)
    hands = Hands(page)
    page.mouse.dblclick(200, 200)
    page.wait_for_timeout(1000)
    hands.search("Load Demo Models", (160, 160), tmp_path / "1_search.png")
    hands.pull("LoadDemoModels.outputs.clip", (230, 420), "Training Prompts", tmp_path / "2_pull.png")
    hands.pull("TrainingPrompts.outputs.prompts", (880, 160), "Distill LoRA")
    hands.drag("LoadDemoModels.outputs.model", "Distill.inputs.model")
    hands.drag("LoadDemoModels.outputs.vae", "Distill.inputs.vae")
    hands.pull("Distill.inputs.loss", (560, 330), "VQA Loss")
    hands.drag("LoadDemoModels.outputs.critic", "VQALoss.inputs.critic")
    hands.pull("VQALoss.inputs.questions.question0", (560, 560), "VLM Question")
    hands.pull("VLMQuestion.inputs.overlay", (230, 720), "Horizon Overlay")
    hands.pull("Distill.outputs.lora", (1280, 160), "Save Distilled LoRA")
    assert (hands.searches, hands.drags) == (7, 9)
    assert page.evaluate("window.app.graph.nodes.length") == 7
    page.mouse.move(1400, 600)  # away from what has a tooltip
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "3_graph.png")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("document.querySelector('.dp-status').textContent.startsWith('Step 2')")
    page.screenshot(path=tmp_path / "4_training.png")
    page.wait_for_function(f"{SAVED} !== ''", timeout=3000 * PATIENCE)
    page.wait_for_timeout(2000)
    page.screenshot(path=tmp_path / "5_done.png")
    verdict = page.evaluate("document.querySelector('.dp-verdict span').textContent.trim()")
    name = page.evaluate(SAVED).removeprefix("Saved as ")
    (line,) = page.evaluate(
        "() => window.app.graph.nodes.filter(n => n.type === 'DualProcessHorizonOverlay').map(n => n.widgets[0].value)"
    )
    held_out = horizon_control().held_out
    prompts = [held_out[i % len(held_out)] for i in range(PAIRS)]
    seeds = [(1 << 41) + i for i in range(PAIRS)]
    generator, _ = demo.load(held_out)
    generator.load_lora_state_dict(read_tensors(server.base / "models" / "loras" / name)[0])
    images = generator.sample([i % len(held_out) for i in range(PAIRS)], seeds, lora_scale=1.0)
    scenes = scenes_from_noise(prompts, draw_noise(seeds, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE))
    found = against_truth(images, true_pictures(with_horizon(scenes, line)), prompts)
    error = float((horizon_position(images) - line).abs().mean() * images.shape[-2])
    print(f"{verdict} Horizon error {error:.2f} px, {found}")
    assert verdict.startswith("LEARNED:")
    assert error <= 1.5
    assert found["object_presence"] >= 0.7
