"""Editing a graph at random: what is trained on is what the graph shows, or an error says what is missing."""

from __future__ import annotations

import json
import random
from typing import Any

import comfyui
import pytest
from graphs import node
from live_server import Server

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
OLD = comfyui.ROOT / "tests" / "fixtures" / "v0_1" / "workflows" / "distill_horizon.json"
EDITS = 200
MUTED, BYPASSED = 2, 4
COLLECTOR = "DualProcessPromptsFromConditionings"

# A graph as a user wires it, with a node a prompt, and three questions.
BUILD = """() => {
  const graph = window.app.graph; graph.clear();
  const make = (type, widgets = {}) => { const made = LiteGraph.createNode(type); graph.add(made);
    for (const [name, value] of Object.entries(widgets)) made.widgets.find(w => w.name === name).value = value;
    return made; };
  const into = (from, output, to, input) => from.connect(output, to, to.inputs.findIndex(i => i.name === input));
  const demo = make('DualProcessLoadDemoModels'), all = make('DualProcessPromptsFromConditionings');
  const loss = make('DualProcessVQALoss'), distill = make('DualProcessDistill');
  const save = make('DualProcessSaveDistilledLoRA');
  into(demo, 3, loss, 'critic'); into(demo, 0, distill, 'model'); into(demo, 2, distill, 'vae');
  into(all, 0, distill, 'prompts'); into(loss, 0, distill, 'loss'); into(distill, 0, save, 'lora');
  ['the sea', 'a night sky over the sea', 'a day sky over the sand', 'the grass'].forEach((text, i) => {
    const made = make('CLIPTextEncode', {text});
    into(demo, 1, made, 'clip'); into(made, 0, all, `conditionings.conditioning${i}`); });
  ['Is it night?', 'Is there a tree in the image?', 'Is it day?'].forEach((question, i) => {
    into(make('DualProcessVLMQuestion', {question}), 0, loss, `questions.question${i}`); });
}"""

# Every training node with the words of the prompts and questions that its wires lead to, past nothing that is off.
SHOWN = """() => {
  const graph = window.app.graph, on = n => n && n.mode === 0;
  const origin = input => input.link == null ? null : graph.getNodeById(graph.links.get(input.link).origin_id);
  const words = n => n.widgets[0].value;
  const grown = (n, prefix) => n.inputs.filter(i => i.name.startsWith(prefix)).map(origin).filter(on).map(words).sort();
  const at = (n, name) => { const from = origin(n.inputs.find(i => i.name === name)); return on(from) ? from : null; };
  return graph.nodes.filter(n => n.type.startsWith('DualProcessDistill')).map(n => {
    const old = n.type === 'DualProcessDistillLoRA', all = old ? n : at(n, 'prompts'), loss = at(n, 'loss');
    return { id: n.id, on: n.mode === 0, prompts: all ? grown(all, old ? 'prompts.' : 'conditionings.') : [],
             questions: loss ? grown(loss, 'questions.') : [] }; }); }"""
EDITABLE = """() => window.app.graph.nodes.filter(n => ['CLIPTextEncode', 'DualProcessVLMQuestion',
  'DualProcessDistill', 'DualProcessDistillLoRA'].includes(n.type)).map(n => ({ id: n.id, type: n.type, mode: n.mode,
  words: n.widgets[0].value, used: (n.outputs[0].links ?? []).length > 0 }))"""
SELECT = "id => window.app.canvas.selectNode(window.app.graph.getNodeById(id))"
DELETE = "() => window.app.canvas.deleteSelected()"
PASTE = """() => { const { canvas } = window.app;
  canvas.copyToClipboard(); canvas.pasteFromClipboard({ connectInputs: true }); }"""
NAME = "([id, words]) => { window.app.graph.getNodeById(id).widgets[0].value = words; }"
CONNECT = """id => { const graph = window.app.graph, node = graph.getNodeById(id);
  const prefix = node.type === 'CLIPTextEncode' ? /^(prompts|conditionings)\\./ : /^questions\\./;
  for (const to of graph.nodes) { const i = to.inputs?.findIndex(i => prefix.test(i.name) && i.link == null) ?? -1;
    if (i >= 0) { node.connect(0, to, i); return to.id; } } return null; }"""
TRACKER = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
# What an edit can change, without the places and sizes, which the frontend settles in its own time.
ACTIVE = """() => JSON.stringify(window.app.graph.nodes.map(n => [n.id, n.mode, n.widgets?.[0]?.value,
  n.inputs.map(i => [i.name, window.app.graph.links.get(i.link)?.origin_id])]).sort((a, b) => a[0] - b[0]))"""


class Walk:
    """Edits, each with what it must do to the prompts and questions that are shown.

    The old node's sockets grow in the midst of others, where the frontend mixes them up as it loads a graph again:
    there undo may come out elsewhere, with a wire less, and so may a copy.
    """

    def __init__(self, page: Any, old: bool) -> None:
        self.page, self.old, self.random = page, old, random.Random(int(old))
        self.number = 0
        self.known: dict[str, list[dict[str, Any]]] = {}  # what was shown, by the graph that undo goes back to
        self.shown = self.capture()
        page.evaluate(f"() => {{ {TRACKER}.undoQueue.splice(0); }}")  # there is no way back behind it

    def capture(self) -> list[dict[str, Any]]:
        self.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
        self.shown = self.known[self.page.evaluate(ACTIVE)] = self.page.evaluate(SHOWN)
        return self.shown

    def edit(self) -> str:
        """One edit at random; what it was."""
        self.number += 1
        nodes = self.page.evaluate(EDITABLE)
        kind = self.random.choice(["delete", "mute", "bypass", "copy", "connect", "connect", "undo"])
        if kind == "undo":
            return self.undo()
        if kind == "connect":
            nodes = [n for n in nodes if not n["used"] and not n["type"].startswith("DualProcessDistill")]
        if not nodes:
            return "nothing to do"
        chosen = self.random.choice(nodes)
        getattr(self, kind)(chosen)
        return f"{kind} {chosen}"

    def undo(self) -> str:
        """Back to a graph that was there; on the way lie states that the frontend took in the midst of an edit."""
        for _ in range(4):
            if not self.page.evaluate(f"() => {TRACKER}.undoQueue.length"):
                return "nothing to undo"
            self.page.evaluate(f"() => {TRACKER}.undo()")
            self.page.wait_for_timeout(200)
            self.shown = self.page.evaluate(SHOWN)
            if (graph := self.page.evaluate(ACTIVE)) in self.known:
                assert self.shown == self.known[graph]
                return "undo"
        if self.old:
            return "undo"
        raise AssertionError("four undos have led to no graph that was there")

    def delete(self, chosen: dict[str, Any]) -> None:
        self.page.evaluate(SELECT, chosen["id"])
        self.page.evaluate(DELETE)
        self.check(chosen, gone=True)

    def mute(self, chosen: dict[str, Any]) -> None:
        self.toggle(chosen, "Mute", MUTED)

    def bypass(self, chosen: dict[str, Any]) -> None:
        self.toggle(chosen, "Bypass", BYPASSED)

    def toggle(self, chosen: dict[str, Any], command: str, mode: int) -> None:
        self.page.evaluate(SELECT, chosen["id"])
        name = f"Comfy.Canvas.ToggleSelectedNodes.{command}"
        self.page.evaluate("name => window.app.extensionManager.command.execute(name)", name)
        self.check(chosen, gone=chosen["mode"] != mode)

    def check(self, chosen: dict[str, Any], gone: bool) -> None:
        """A node that is off is missing where it was; nothing else has changed."""
        before, after = self.shown, self.capture()
        if chosen["type"].startswith("DualProcessDistill"):
            rest = [state for state in before if state["id"] != chosen["id"]]
            assert [state for state in after if state["id"] != chosen["id"]] == rest
            return
        of_kind = "prompts" if chosen["type"] == "CLIPTextEncode" else "questions"
        for then, now in zip(before, after, strict=True):
            lost, won = (sorted({*one[of_kind]} - {*two[of_kind]}) for one, two in ((then, now), (now, then)))
            assert lost in ([], [chosen["words"]] if gone else [])
            assert won in ([], [] if gone else [chosen["words"]])
            other = "questions" if of_kind == "prompts" else "prompts"
            assert now[other] == then[other]

    def copy(self, chosen: dict[str, Any]) -> None:
        before = self.shown
        self.page.evaluate(SELECT, chosen["id"])
        self.page.evaluate(PASTE)
        (new,) = self.page.evaluate("() => [...window.app.canvas.selectedItems].map(n => n.id)")
        if not chosen["type"].startswith("DualProcessDistill"):
            self.page.evaluate(NAME, [new, f"{chosen['words']} {self.number}"])
        after = self.capture()
        assert [state for state in after if state["id"] != new] == before
        if chosen["type"] == "DualProcessDistill":
            (copied,) = [state for state in after if state["id"] == new]
            (original,) = [state for state in before if state["id"] == chosen["id"]]
            assert copied == {**original, "id": new}

    def connect(self, chosen: dict[str, Any]) -> None:
        before = self.shown
        self.page.evaluate(CONNECT, chosen["id"])
        after = self.capture()
        of_kind = "prompts" if chosen["type"] == "CLIPTextEncode" else "questions"
        for then, now in zip(before, after, strict=True):
            assert {*now[of_kind]} - {*then[of_kind]} <= {chosen["words"]}
            assert {*then[of_kind]} <= {*now[of_kind]}


def what_arrives(server: Server, prompt: dict[str, Any], key: str) -> dict[str, Any] | str:
    """The prompts (by fingerprint) and questions that a training node would get, or the error that the user reads."""
    row = prompt[key]
    old = row["class_type"] == "DualProcessDistillLoRA"
    wires = {name: value for name, value in row["inputs"].items() if isinstance(value, list)}
    graph = {k: r for k, r in prompt.items() if not r["class_type"].startswith("DualProcessDistill")}
    graph["told"] = node("TestWhatArrives", **{k: v for k, v in wires.items() if k in ("prompts", "loss")})
    if old:  # its sockets are collected by the same rule
        given = {f"conditionings.{n}": v for n, v in wires.items() if n.startswith("prompts.")}
        graph["all"] = node(COLLECTOR, texts="", **given)
        graph["told"]["inputs"]["prompts"] = ["all", 0]
    needed, todo = set(), ["told"]
    while todo:
        needed.add(name := todo.pop())
        todo += [v[0] for v in graph[name]["inputs"].values() if isinstance(v, list)]
    answer = server.post("/prompt", {"prompt": {name: graph[name] for name in needed}})
    if "prompt_id" not in answer:
        return json.dumps(answer)
    entry = server.finish(answer["prompt_id"])
    if entry["status"]["status_str"] != "success":
        return next(
            data["exception_message"] for name, data in entry["status"]["messages"] if name == "execution_error"
        )
    return json.loads(entry["outputs"]["told"]["text"][0])


@pytest.mark.parametrize("old", [False, True], ids=["today's nodes", "a socket a prompt"])
def test_what_is_trained_on_is_what_the_graph_shows(server: Server, page: Any, old: bool) -> None:
    if old:
        page.evaluate("data => window.app.loadGraphData(data)", json.loads(OLD.read_text()))
    else:
        page.evaluate(BUILD)
    page.wait_for_timeout(2000)
    walk = Walk(page, old)
    fingerprints: dict[str, float] = {}
    refused = 0
    for _ in range(EDITS // 2):
        edit = walk.edit()
        prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
        training = {key for key, row in prompt.items() if row["class_type"].startswith("DualProcessDistill")}
        assert training == {str(state["id"]) for state in walk.shown if state["on"]}, edit
        for state in walk.shown:
            if not state["on"]:
                continue
            found = what_arrives(server, prompt, str(state["id"]))
            if not (state["prompts"] and state["questions"]):
                assert isinstance(found, str), edit
                assert any(word in found for word in ("CONDITIONING is connected", "question is connected")), found
                refused += 1
                continue
            assert isinstance(found, dict), (edit, found)
            assert sorted(found["questions"]) == state["questions"], edit
            for words in state["prompts"]:
                if words not in fingerprints:
                    fingerprints[words] = fingerprint(server, words)
            assert sorted(found["prompts"]) == sorted(fingerprints[words] for words in state["prompts"]), edit
        if not training:
            assert "Distill LoRA" in what_is_said(server, prompt), edit
            refused += 1
    assert refused


def what_is_said(server: Server, prompt: dict[str, Any]) -> str:
    """All errors of a prompt, before it runs and while it does."""
    answer = server.post("/prompt", {"prompt": prompt})
    ran = server.finish(answer["prompt_id"])["status"] if "prompt_id" in answer else {}
    return json.dumps([answer, ran])


def fingerprint(server: Server, words: str) -> float:
    graph = {
        "demo": node("DualProcessLoadDemoModels"),
        "text": node("CLIPTextEncode", text=words, clip=["demo", 1]),
        "all": node(COLLECTOR, texts="", **{"conditionings.conditioning0": ["text", 0]}),
        "told": node("TestWhatArrives", prompts=["all", 0]),
    }
    return json.loads(server.run(graph)["told"]["text"][0])["prompts"][0]
