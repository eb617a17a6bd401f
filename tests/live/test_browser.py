"""What a user sees: the real frontend in Chromium, from the template dialog to the trained picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui
import pytest
from live_server import BROWSER, PACK, PATIENCE, Server

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]
WORKFLOWS = comfyui.ROOT / "workflows"
OLD = comfyui.ROOT / "tests" / "fixtures" / "v0_1" / "workflows"
FLUX = "05_flux_schnell_teach_a_horizon"
RUNNABLE = [p for p in sorted(WORKFLOWS.glob("*.json")) if p.stem != FLUX]
RUNNABLE += [p for p in sorted(OLD.glob("*.json")) if "flux" not in p.stem]
TRAINING = ("DualProcessDistill", "DualProcessDistillLoRA")


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1900, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(server.address)
        page.wait_for_function("window.app && window.app.extensionManager")
        yield page
        browser.close()


def open_template(page: Any, name: str) -> None:
    """Opens one of the pack's templates as a user does."""
    from playwright.sync_api import TimeoutError as Late

    dialog = page.get_by_role("dialog")
    try:
        dialog.wait_for(timeout=120_000)  # it opens by itself on the very first start
    except Late:
        page.get_by_text("Templates", exact=True).first.click()
    dialog.get_by_text(PACK, exact=True).click()
    dialog.get_by_text(name, exact=True).first.click()
    page.wait_for_function("window.app.graph.nodes.length > 5")


def test_a_user_opens_the_horizon_template_and_trains(server: Server, page: Any, tmp_path: Path) -> None:
    open_template(page, "01_demo_teach_a_horizon")
    page.evaluate(
        """() => { const node = window.app.graph.nodes.find(n => n.type === 'DualProcessDistill');
        node.widgets.find(w => w.name === 'train_steps').value = 6; }"""
    )
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("document.querySelector('.dp-status').textContent.startsWith('Step')")
    page.screenshot(path=tmp_path / "training.png")
    page.wait_for_function(
        "document.querySelector('.dp-saved').textContent.startsWith('Saved as dual_process/horizon')"
    )
    page.screenshot(path=tmp_path / "trained.png")
    assert list((server.base / "models" / "loras" / "dual_process").glob("horizon_*.safetensors"))


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_every_demo_template_runs_as_it_is(server: Server, page: Any, path: Path) -> None:
    """Loads the file into the frontend, takes the prompt that Run would send, and runs it; training is cut short.

    So do the templates of version 0.1, which users have made theirs.
    """
    page.evaluate("data => window.app.loadGraphData(data)", json.loads(path.read_text()))
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert len(prompt) >= 7
    for row in prompt.values():
        if row["class_type"] in TRAINING:
            row["inputs"]["train_steps"] = 3
            assert all(source in prompt for source, _ in (v for v in row["inputs"].values() if isinstance(v, list)))
    outputs = server.run(prompt)
    kinds = ("PreviewImage", "SaveImage", "PreviewAny", "DualProcessSaveDistilledLoRA")
    shown = [key for key, row in prompt.items() if row["class_type"] in kinds]
    assert shown
    assert all(outputs[key].get("images") or outputs[key].get("text") for key in shown)


def test_the_flux_template_lacks_nothing_but_the_model_files(server: Server, page: Any) -> None:
    workflow = json.loads((WORKFLOWS / f"{FLUX}.json").read_text())
    page.evaluate("data => window.app.loadGraphData(data)", workflow)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    answer = server.post("/prompt", {"prompt": prompt})
    errors = [e for row in answer["node_errors"].values() for e in row["errors"]]
    critic = next(e for e in errors if e["type"] == "custom_validation_failed")  # our own words
    assert "'Qwen2.5-VL-7B-Instruct' is not among them" in critic["details"]
    others = [e for e in errors if e["type"] != critic["type"]]
    assert {e["type"] for e in others} == {"value_not_in_list"}
    named = {e["extra_info"]["received_value"] for e in others}
    assert named == {"flux1-schnell.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors", "ae.safetensors"}


def test_every_template_has_a_thumbnail() -> None:
    for path in WORKFLOWS.glob("*.json"):
        assert path.with_suffix(".jpg").stat().st_size > 1000
