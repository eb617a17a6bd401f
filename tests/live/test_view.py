"""The view in Distill LoRA as users see it, in both renderers: live, after reloads, in two tabs, stopped, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfyui
import pytest
import torch
from live_server import Server, open_page

from dual_process.core.tensor_file import read_tensors

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
HORIZON = json.loads((comfyui.ROOT / "workflows" / "01_demo_teach_a_horizon.json").read_text())
STATUS = "(document.querySelector('.dp-status')?.textContent ?? '')"
INK = """() => [...document.querySelectorAll('.dp-chart canvas')].map(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(Array.from({length: pixels.length / 4}, (_, i) => pixels.slice(4 * i, 4 * i + 4).join())).size; })"""
SHOWN = "[...document.querySelectorAll('.dp-picture')].filter(p => p.complete && p.naturalWidth > 0).map(p => p.src)"
NODE = "window.app.graph.nodes.find(n => n.type === 'DualProcessDistill')"
KEYS = """[window.app.graph, ...window.app.graph.subgraphs.values()].flatMap(g => g.nodes)
  .filter(n => n.type === 'DualProcessDistill').map(n => n.properties.dual_process_view)"""
SIZES = f"""() => [...{NODE}.size, document.querySelector('.dual-process-view').clientHeight]"""
SET = """settings => { const node = window.app.graph.nodes.find(n => n.type === 'DualProcessDistill');
  for (const [name, value] of Object.entries(settings)) node.widgets.find(w => w.name === name).value = value; }"""
RESUME = f"""() => {{ const node = LiteGraph.createNode('DualProcessLoadDistillationCheckpoint');
  window.app.graph.add(node); node.pos = [0, -250]; node.connect(0, {NODE}, 'resume'); }}"""


def open_horizon(server: Server, context: Any, **settings: Any) -> Any:
    page = open_page(server, context)
    page.evaluate("data => window.app.loadGraphData(data)", HORIZON)
    page.wait_for_function(f"{STATUS} !== ''")
    page.evaluate(SET, {"anchor_pool": 2, "look_every": 1, "batch_size": 1, **settings})
    return page


def wait_status(page: Any, pattern: str) -> str:
    page.wait_for_function(f"/{pattern}/.test({STATUS})")
    return page.evaluate(STATUS)


def run(page: Any) -> None:
    page.evaluate("() => window.app.queuePrompt(0, 1)")


def test_a_run_is_seen_by_all_tabs_through_reloads_and_can_be_stopped(
    server: Server, context: Any, request: Any, tmp_path: Path
) -> None:
    seed = 100 + len(request.node.name)
    page = open_horizon(server, context, train_steps=400, seed=seed)
    page.wait_for_timeout(1000)
    sizes, keys = page.evaluate(SIZES), page.evaluate(KEYS)
    run(page)
    wait_status(page, "^Step [1-9]")
    page.wait_for_function(f"() => {SHOWN}.length === 6")  # three prompts, before and now
    first = page.evaluate(SHOWN)
    assert all(colors > 2 for colors in page.evaluate(INK))
    page.wait_for_function(f"first => {SHOWN}.join() !== first", arg=",".join(first))
    page.screenshot(path=tmp_path / "running.png")
    assert page.evaluate(SIZES) == sizes  # nothing jumps when a run begins

    page.reload()
    page.wait_for_function("window.app && window.app.extensionManager")
    before = wait_status(page, "^Step [1-9]")
    page.wait_for_function(f"before => {STATUS} !== before && {STATUS}.startsWith('Step')", arg=before)
    assert page.evaluate(KEYS) == keys
    workflow = page.evaluate("() => window.app.graph.serialize()")
    other = open_page(server, context)
    other.evaluate("data => window.app.loadGraphData(data)", workflow)
    wait_status(other, "^Step [1-9]")
    other.screenshot(path=tmp_path / "second_tab.png")

    other.get_by_role("button", name="Stop and keep").first.click()
    for tab in (page, other):
        assert "and kept" in wait_status(tab, "^Stopped at step")
        tab.wait_for_function("document.querySelector('.dp-saved').textContent.startsWith('Saved as dual_process/')")
        assert tab.evaluate("document.querySelector('.dp-verdict b').textContent")
    page.screenshot(path=tmp_path / "stopped.png")
    page.reload()
    page.wait_for_function("window.app && window.app.extensionManager")
    assert "and kept" in wait_status(page, "^Stopped at step")
    page.wait_for_function(f"() => {SHOWN}.length === 6")
    page.screenshot(path=tmp_path / "after_reload.png")


def test_a_stopped_run_goes_on_in_the_graph_and_ends_as_if_undisturbed(
    server: Server, context: Any, request: Any, tmp_path: Path
) -> None:
    page = open_horizon(server, context, train_steps=30, look_every=10, seed=700 + len(request.node.name))
    run(page)
    wait_status(page, "^Step [3-9] ")
    page.get_by_role("button", name="Stop and keep").first.click()
    wait_status(page, "and kept")
    page.evaluate("() => window.app.refreshComboInNodes()")  # as the key R does
    page.evaluate(RESUME)
    page.wait_for_timeout(1000)
    page.screenshot(path=tmp_path / "resume.png")
    resumed = saved_by(page, server, "Done after 30 steps")
    page.evaluate(f"() => {{ {NODE}.disconnectInput('resume'); }}")
    whole = saved_by(page, server, "Done after 30 steps", but=resumed)
    first, second = (read_tensors(server.base / "models" / "loras" / name)[0] for name in (resumed, whole))
    assert all(torch.equal(first[name], second[name]) for name in second)


def saved_by(page: Any, server: Server, status: str, but: str = "") -> str:
    """Runs the graph to its end; the name of the LoRA that was saved."""
    run(page)
    saved = "document.querySelector('.dp-saved').textContent.replace('Saved as ', '')"
    page.wait_for_function(f"but => {STATUS} === '{status}' && ![but, ''].includes({saved})", arg=but)
    return page.evaluate(saved)


def test_keys_stay_and_are_never_shared(server: Server, context: Any) -> None:
    page = open_horizon(server, context)
    page.wait_for_timeout(1000)
    (key,) = page.evaluate(KEYS)
    assert len(key) == 32
    page.evaluate(
        f"""() => {{ const {{ canvas }} = window.app; canvas.selectNode({NODE});
        canvas.copyToClipboard(); canvas.pasteFromClipboard(); }}"""
    )
    page.wait_for_function(f"() => new Set({KEYS}).size === 2")
    assert page.evaluate(KEYS)[0] == key
    page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.evaluate("() => window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.wait_for_function(f"() => {KEYS}.length === 1")
    page.wait_for_timeout(1000)
    assert page.evaluate(KEYS) == [key]
    page.evaluate(f"() => {{ window.app.graph.convertToSubgraph(new Set([{NODE}])); }}")
    for _ in range(2):  # its old subgraph is not its twin
        page.evaluate("() => window.app.loadGraphData(window.app.graph.serialize())")
        page.wait_for_timeout(1000)
        assert page.evaluate(KEYS) == [key]


def test_sockets_have_colours_in_every_palette(server: Server, context: Any) -> None:
    page = open_horizon(server, context)
    colors = """() => [LGraphCanvas.link_type_colors.DUAL_PROCESS_LOSS,
      window.app.canvas.default_connection_color_byType.DUAL_PROCESS_LOSS,
      getComputedStyle(document.documentElement).getPropertyValue('--color-datatype-DUAL_PROCESS_LOSS')]"""
    for palette in ("light", "dark"):
        page.evaluate("name => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(2000)
        first, *others = page.evaluate(colors)
        assert first.startswith("#")
        assert others == [first, first]


def test_two_queued_runs_a_copy_and_an_error(server: Server, context: Any, request: Any, tmp_path: Path) -> None:
    page = open_horizon(server, context, train_steps=2, seed=500 + len(request.node.name))
    values = page.evaluate(f"() => {NODE}.serialize().widgets_values")
    assert values[:2] == ["auto", 2]  # the view and the button for advanced settings take no place
    for seed in (600, 601):  # the second waits in the queue while the first trains
        page.evaluate(SET, {"seed": seed + len(request.node.name)})
        run(page)
    key = page.evaluate(f"() => {NODE}.properties.dual_process_view")
    runs = server.base / "output" / "dual_process" / "runs"

    def saved() -> list[str]:
        states = [json.loads(path.read_text()) for path in sorted(runs.glob(f"*_{key}/state.json"))]
        return [state["saved"] for state in states if state["saved"]]

    first, second = server.wait(lambda: len(saved()) == 2 and saved(), "finish two queued runs")
    page.wait_for_function("name => document.querySelector('.dp-saved').textContent === `Saved as ${name}`", arg=second)
    assert first != second
    keys = page.evaluate(
        """async () => { const graph = window.app.graph, node = graph.nodes.find(n => n.type === 'DualProcessDistill');
        const copy = node.clone(); graph.add(copy); await new Promise(r => setTimeout(r, 500));
        const keys = [node, copy].map(n => n.properties.dual_process_view); graph.remove(copy); return keys; }"""
    )
    assert len(set(keys)) == 2
    assert all(len(key) == 32 for key in keys)
    page.evaluate(SET, {"width": 512, "height": 512})
    run(page)
    assert "512 × 512 pixels are too many for demo models" in wait_status(page, "too many")
    page.screenshot(path=tmp_path / "error.png")
