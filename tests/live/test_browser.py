"""What a user sees: the real frontend in Chromium, from the template dialog to the trained picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui
import pytest
from hands import Hands
from live_server import PACK, Server, browser_context

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
WORKFLOWS = comfyui.ROOT / "workflows"
OLD = comfyui.ROOT / "tests" / "fixtures" / "v0_1" / "workflows"
RUNNABLE = [path for path in sorted(OLD.glob("*.json")) if "flux" not in path.stem]
BLUEPRINT = "Distill from one question"
SHORT = """() => { for (const node of [window.app.graph, ...window.app.graph.subgraphs.values()].flatMap(g => g.nodes))
  for (const [name, value] of [['train_steps', 3], ['anchor_pool', 2]]) {
    const widget = node.widgets?.find(w => w.name === name); if (widget) widget.value = value; } }"""
REOPEN = """() => window.app.loadGraphData(
  window.app.graph.serialize(), true, true, window.app.extensionManager.workflow.activeWorkflow)"""  # in the same tab
WIRE = """() => { const graph = window.app.graph, [blueprint] = graph.nodes;
  const wires = {DualProcessLoadDemoModels: ['model', 'vae', 'critic'], DualProcessTrainingPrompts: ['prompts']};
  const nodes = Object.fromEntries([...Object.keys(wires), 'DualProcessSaveDistilledLoRA', 'PreviewImage'].map(type => {
    const node = window.LiteGraph.createNode(type); graph.add(node); return [type, node]; }));
  const [demo, prompts, save, picture] = Object.values(nodes);
  const connect = (from, output, to, input) =>
    from.connect(from.outputs.findIndex(o => o.name === output), to, to.inputs.findIndex(i => i.name === input));
  for (const [type, names] of Object.entries(wires))
    for (const name of names) connect(nodes[type], name, blueprint, name);
  connect(demo, 'clip', prompts, 'clip');
  connect(blueprint, 'lora', save, 'lora'); connect(blueprint, 'comparison', picture, 'images'); }"""
TRAINING = ("DualProcessDistill", "DualProcessDistillLoRA")


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    with browser_context(server, "classic", width=1900) as context:
        page = context.new_page()
        page.goto(server.address)
        page.wait_for_function("window.app && window.app.extensionManager")
        yield page


def open_template(page: Any, name: str) -> None:
    """Opens one of the pack's templates as a user does."""
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = page.get_by_role("dialog")
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


def test_a_user_runs_the_app(server: Server, page: Any, tmp_path: Path) -> None:
    open_template(page, "06_demo_teach_a_horizon.app")
    page.get_by_role("button", name="Skip", exact=True).click()  # the frontend's tour of app mode
    page.evaluate(SHORT)
    widgets = page.get_by_test_id("app-mode-widget-item")
    labels = widgets.get_by_test_id("builder-widget-label").all_inner_texts()
    assert labels == ["question", "position", "view"]
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_role("button", name="Stop and keep").wait_for()  # the view is live here, too
    picture = page.locator("img[src*='filename=horizon_']").first
    picture.wait_for()
    page.wait_for_function("document.querySelector('.dp-status').textContent.startsWith('Done after 3 steps')")
    page.screenshot(path=tmp_path / "app.png")
    assert list((server.base / "output" / "dual_process").glob("horizon_*.png"))


def test_a_user_finds_the_blueprint_and_trains_with_it(server: Server, page: Any, tmp_path: Path) -> None:
    page.wait_for_timeout(3000)  # the dialog of templates opens by itself on the very first start
    page.keyboard.press("Escape")
    page.evaluate("() => window.app.graph.clear()")
    page.mouse.dblclick(900, 300)
    page.keyboard.type(BLUEPRINT)
    found = page.get_by_text("Subgraph Blueprints / dual process").first
    found.wait_for()
    page.keyboard.press("Enter")
    found.wait_for(state="hidden")
    page.wait_for_timeout(1000)  # the search fades away, and the node hangs on the mouse
    page.mouse.click(900, 300)
    page.wait_for_function("window.app.graph.nodes.length === 1 && !window.app.graph.nodes[0].flags.ghost")
    shown = page.evaluate("() => window.app.graph.nodes[0].widgets.map(w => w.name)")
    assert shown == ["question", "answer", "preset", "train_steps"]
    page.evaluate(WIRE)
    page.evaluate(SHORT)
    page.evaluate(REOPEN)
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert next(row["inputs"] for row in prompt.values() if "question" in row["inputs"])["question"] == "Is it night?"
    page.evaluate(
        """() => { const node = window.app.graph.nodes.find(n => n.isSubgraphNode?.());
        window.app.canvas.setGraph(node.subgraph); window.app.queuePrompt(0, 1); }"""
    )
    page.wait_for_function("document.querySelector('.dp-saved')?.textContent.startsWith('Saved as dual_process/lora')")
    page.screenshot(path=tmp_path / "inside.png")
    assert list((server.base / "models" / "loras" / "dual_process").glob("lora_*.safetensors"))


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_the_templates_of_version_0_1_run(server: Server, page: Any, path: Path) -> None:
    """Users have made them theirs. The prompt that Run would send is run; training is cut short."""
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


def test_swatches_change_the_colours_in_the_classic_renderer(page: Any) -> None:
    workflow = json.loads((WORKFLOWS / "02_demo_teach_a_palette.json").read_text())
    (node,) = (n for n in workflow["nodes"] if n["type"] == "DualProcessPaletteOverlay")
    before, height, *_ = node["widgets_values"]
    open_template(page, "02_demo_teach_a_palette")
    page.wait_for_function(f"() => document.querySelectorAll('.dp-swatches input').length === {len(before)}")
    page.evaluate("""() => { const swatch = document.querySelectorAll('.dp-swatches input')[1];
      swatch.value = '#112233'; swatch.dispatchEvent(new Event('change')); }""")
    page.get_by_title("Add a colour").click()
    page.get_by_title("Add a colour").click()
    page.get_by_title("Leave out the last colour").click()
    wanted = [before[0], "#112233", *before[2:], before[-1]]
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert prompt[str(node["id"])]["inputs"]["colors"] == {"__value__": wanted}
    saved = "() => window.app.graph.nodes.find(n => n.type === 'DualProcessPaletteOverlay').serialize().widgets_values"
    assert page.evaluate(saved) == [wanted, height, "bottom", 5]


def test_menu_after_dragging_from_lora_begins_with_our_save_node(page: Any) -> None:
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.LinkRelease.Action', 'context menu')")
    open_template(page, "03_demo_use_a_saved_lora")
    page.evaluate("""() => { const node = LiteGraph.createNode('DualProcessDistill'); window.app.graph.add(node);
      node.pos = [-600, 0]; Object.assign(window.app.canvas.ds, { scale: 0.7, offset: [800, 300] }); }""")
    page.wait_for_timeout(1000)
    Hands(page).drag("Distill.outputs.lora", (900, 120))
    entries = page.locator(".litecontextmenu .litemenu-entry")
    entries.filter(has_text="SaveLoRA").wait_for()
    nodes = [text for text in entries.all_inner_texts() if text in ("DualProcessSaveDistilledLoRA", "SaveLoRA")]
    assert nodes == ["DualProcessSaveDistilledLoRA", "SaveLoRA"]
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.LinkRelease.Action', 'search box')")
