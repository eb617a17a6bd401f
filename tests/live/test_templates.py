"""Every template, in both renderers: it opens whole, is tidy, is saved as it was, and runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui
import pytest
from live_server import PATIENCE, RENDERERS, Server, browser_context, open_page

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
TEMPLATES = sorted((comfyui.ROOT / "workflows").glob("*.json"))
DEMOS = [path for path in TEMPLATES if "_demo_" in path.stem]
DOWNLOADED = [path for path in TEMPLATES if path not in DEMOS]  # models are to be downloaded first
PROMPT = "async () => (await window.app.graphToPrompt()).output"
SAVED = "() => JSON.parse(JSON.stringify(window.app.graph.serialize()))"
MISSING = "() => window.app.graph.nodes.map(n => n.type).filter(type => !(type in LiteGraph.registered_node_types))"
SHORT = """seed => { const short = { DualProcessDistill: { train_steps: 3, anchor_pool: 2, seed },
    DualProcessPickFavourites: { picks: '1 -2', round_steps: 3, seed } };
  for (const node of window.app.graph.nodes) for (const [name, value] of Object.entries(short[node.type] ?? {}))
    node.widgets.find(w => w.name === name).value = value; }"""
DONE = "/^Done after 3 steps/.test(document.querySelector('.dp-status')?.textContent ?? '')"
RESULTS = ("PreviewImage", "SaveImage", "PreviewAny", "DualProcessSaveDistilledLoRA")
WINDOWS = ((1600, 1000), (1280, 720))
# Where nodes are, by the graph and in Nodes 2.0 by the page, too. Wires as the frontend draws them: below nodes.
LAYOUT = """() => {
  const { graph, canvas } = window.app, { scale, offset } = canvas.ds, page = canvas.canvas.getBoundingClientRect();
  const box = (name, left, top, width, height) => ({ name, left, top, right: left + width, bottom: top + height });
  const shown = node => {
    const drawn = box(node.title, ...node.boundingRect);
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!element) return drawn;
    const { x, y, width, height } = element.getBoundingClientRect();
    const there = box('', x / scale - offset[0], y / scale - offset[1], width / scale, height / scale);
    const both = (side, of) => of(drawn[side], there[side]);
    return { name: node.title, left: both('left', Math.min), top: both('top', Math.min),
      right: both('right', Math.max), bottom: both('bottom', Math.max) }; };
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const holds = (a, b) => a.left < b.left && a.top + 30 <= b.top && a.right > b.right && a.bottom > b.bottom;
  const nodes = graph.nodes.map(shown), steps = graph.nodes.filter(n => n.type !== 'MarkdownNote').map(shown);
  const groups = graph.groups.map(group => box(group.title, ...group.boundingRect));
  const screen = box('', -offset[0], -offset[1], page.width / scale, page.height / scale);
  const pen = document.createElement('canvas').getContext('2d'),
    paths = [...graph.links.values()].map(link => link.path).filter(Boolean);  // those outside of the view have none
  pen.lineWidth = 8;
  const crossed = ({ left, top, right }) => {
    for (let x = left; x < right; x += 6) for (let y = top; y < top + 30; y += 6)
      if (paths.some(path => pen.isPointInStroke(path, x, y))) return true; };
  return { scale, labels: !canvas.low_quality, below: !canvas.links_ontop, faults: {
    overlaps: nodes.flatMap((a, i) => nodes.slice(0, i).filter(b => meet(a, b)).map(b => [a, b])),
    cut: nodes.filter(node => !holds({ ...screen, top: screen.top - 30 }, node)),
    homeless: steps.filter(node => !groups.some(group => holds(group, node))),
    halfway: groups.flatMap(group => nodes.filter(node => meet(group, node) && !holds(group, node))),
    crossed: groups.filter(crossed),
    unread: [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-markdown-content')]
      .filter(text => text.clientHeight > 0 && text.scrollHeight > text.clientHeight + 1).map(text => text.innerText) },
    shown: document.querySelectorAll('[data-node-id], .dom-widget').length }; }"""


@pytest.fixture(scope="module", params=RENDERERS)
def page(server: Server, request: Any) -> Iterator[Any]:
    with browser_context(server, request.param) as context:
        page = open_page(server, context)
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.TutorialCompleted', true)")
        page.reload()
        # The workflow that ComfyUI itself opens first comes late on a busy machine, over whatever was loaded before it.
        page.wait_for_function("window.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker")
        yield page


def settled(page: Any) -> dict[str, Any]:
    """The layout once it has stayed as it is for a second."""
    last, same = None, 0
    for _ in range(4 * PATIENCE):
        page.wait_for_timeout(250)
        found = page.evaluate(LAYOUT)
        last, same = found, same + 1 if found == last else 0
        if same == 4:
            return found
    raise AssertionError(f"the layout did not come to rest: {last}")


def open_template(page: Any, path: Path) -> dict[str, Any]:
    workflow = json.loads(path.read_text())
    workflow["extra"].pop("linearMode", None)  # the graph of an app, too
    page.evaluate("data => window.app.loadGraphData(data)", workflow)
    settled(page)
    return workflow


def as_saved(workflow: dict[str, Any]) -> tuple[Any, ...]:
    """What a user would miss or see changed."""
    kept = ("id", "type", "title", "pos", "size", "mode", "widgets_values")
    nodes = [{name: node.get(name) for name in kept} for node in workflow["nodes"]]
    groups = [{name: group[name] for name in ("title", "bounding", "color")} for group in workflow["groups"]]
    return nodes, workflow["links"], groups


def check_layout(page: Any, name: str, folder: Path) -> None:
    """Fits the view to the open graph in each window, measures, and takes a picture."""
    for width, height in WINDOWS:
        page.set_viewport_size({"width": width, "height": height})
        settled(page)
        page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        found = settled(page)
        page.screenshot(path=folder / f"{name}_{width}.png")
        where = f"{name} at {width} x {height}: {found}"
        assert not any(found["faults"].values()), where
        assert found["scale"] >= (0.7 if width == 1600 else 0.5), where
        if width == 1600:
            assert found["labels"], where  # the classic renderer draws no words on nodes that are very small
        assert found["below"], where


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_it_opens_whole_is_tidy_and_is_saved_as_it_was(page: Any, path: Path, tmp_path: Path) -> None:
    workflow = open_template(page, path)
    assert page.evaluate(MISSING) == []
    assert as_saved(page.evaluate(SAVED)) == as_saved(workflow)
    check_layout(page, path.stem, tmp_path)


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_demo_runs_and_stays_tidy(server: Server, page: Any, path: Path, request: Any, tmp_path: Path) -> None:
    open_template(page, path)
    page.evaluate(SHORT, 900 + len(request.node.name))  # another one in each renderer: nothing comes from a cache
    prompt = page.evaluate(PROMPT)
    known = server.get("/history").keys()
    page.evaluate("() => window.app.queuePrompt(0, 1)")
    (new,) = server.wait(lambda: server.get("/history").keys() - known, "run the graph")
    entry = server.get("/history")[new]
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    shown = [key for key, row in prompt.items() if row["class_type"] in RESULTS]
    assert shown
    assert all(entry["outputs"][key].get("images") or entry["outputs"][key].get("text") for key in shown)
    if any(row["class_type"] == "DualProcessDistill" for row in prompt.values()):
        page.wait_for_function(DONE)
    check_layout(page, path.stem, tmp_path)


@pytest.mark.parametrize("path", DOWNLOADED, ids=lambda path: path.stem)
def test_a_template_lacks_nothing_but_the_model_files(server: Server, page: Any, path: Path) -> None:
    workflow = open_template(page, path)
    answer = server.post("/prompt", {"prompt": page.evaluate(PROMPT)})
    rows = [row for row in answer["node_errors"].values() if row["class_type"] != "LoadImage"]  # the user's own picture
    errors = [e for row in rows for e in row["errors"]]
    critic = next(e for e in errors if e["type"] == "custom_validation_failed")  # our own words
    assert "'Qwen2.5-VL-7B-Instruct' is not among them" in critic["details"]
    others = [e for e in errors if e["type"] != critic["type"]]
    assert {e["type"] for e in others} == {"value_not_in_list"}
    offered = {m["name"] for node in workflow["nodes"] for m in node["properties"].get("models", [])}
    assert {e["extra_info"]["received_value"] for e in others} == offered
