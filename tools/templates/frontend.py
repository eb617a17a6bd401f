"""Builds templates and blueprints in ComfyUI's own frontend: it knows the sizes of nodes, and how both are written."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import asdict
from typing import Any

import comfyui

from .layout import lay_out
from .parts import Blueprint, Columns, Template

FOLDER = comfyui.ROOT / "workflows"
BLUEPRINTS = comfyui.ROOT / "subgraphs"
LOW = 120  # pixels: a note in which every text is cut off

BUILD = """async (columns) => {
  const graph = window.app.graph; graph.clear();
  graph.id = crypto.randomUUID();  // the frontend remembers values by the ids of graph and node
  const nodes = {};
  for (const column of Object.values(columns)) for (const [key, want] of Object.entries(column)) {
    const node = window.LiteGraph.createNode(want.type);
    if (!node) throw new Error(`no node ${want.type}`);
    graph.add(node); nodes[key] = node;
    if (want.title) node.title = want.title;
    if (want.models.length) node.properties.models = want.models;
    Object.assign(node.properties, want.properties);
    for (const [name, value] of Object.entries(want.widgets)) {
      const widget = node.widgets?.find(w => w.name === name);
      if (!widget) throw new Error(`${want.type} has no widget ${name}`);
      widget.value = value; widget.callback?.(value);
    }
  }
  for (const column of Object.values(columns)) for (const [key, want] of Object.entries(column)) {
    for (const [name, source] of Object.entries(want.inputs)) {
      const [from, output] = source.split('.'); const node = nodes[key];
      const out = nodes[from].outputs.findIndex(o => o.name === output);
      const slot = node.inputs.findIndex(i => i.name === name);
      if (out < 0 || slot < 0) throw new Error(`no wire ${source} -> ${key}.${name}`);
      nodes[from].connect(out, node, slot);
      await new Promise(r => setTimeout(r, 50));  // growing sockets appear after the turn
    }
  }
  return Object.fromEntries(Object.entries(nodes).map(([key, node]) => [key, [...node.computeSize()]]));
}"""
SIZES = """async (workflow) => {
  await window.app.loadGraphData(workflow);
  const sizes = () => window.app.graph.nodes.map(node => [...node.size]);
  for (let last = '', same = 0; same < 6; ) {  // until they have stayed for three seconds
    await new Promise(r => setTimeout(r, 500));
    const now = JSON.stringify(sizes());
    same = now === last ? same + 1 : 0; last = now;
  }
  return sizes();
}"""
# How many pixels of the note's text its box cuts off; only what is on the screen has a size.
CUT = """async () => {
  await window.app.extensionManager.command.execute('Comfy.Canvas.FitView');
  await new Promise(r => setTimeout(r, 1500));
  const shown = [...document.querySelectorAll('.comfy-markdown .tiptap, .comfy-markdown-content')];
  const text = shown.find(element => element.clientHeight > 0);
  if (!text) throw new Error('the note is not on the screen');
  return text.scrollHeight - text.clientHeight;
}"""
PLACE = """async ({places, groups, note}) => {
  const graph = window.app.graph, order = Object.keys(places);
  graph.groups.slice().forEach(group => graph.remove(group));
  graph.nodes.filter(node => node.type === 'MarkdownNote').forEach(node => graph.remove(node));
  graph.nodes.forEach((node, i) => { const [x, y, w, h] = places[order[i]]; node.pos = [x, y]; node.setSize([w, h]); });
  for (const [title, x, y, w, h] of groups) {
    const group = new window.LiteGraph.LGraphGroup(title); group.pos = [x, y]; group.size = [w, h];
    group.color = '#3f789e'; graph.add(group);
  }
  const said = window.LiteGraph.createNode('MarkdownNote'); graph.add(said);
  said.widgets[0].value = note.text; said.pos = note.pos; said.setSize(note.size);
  await new Promise(r => setTimeout(r, 500));
  return graph.serialize();
}"""
INTO_SUBGRAPH = """async ({name, places, inputs, widgets, outputs}) => {
  const graph = window.app.graph, order = Object.keys(places);
  graph.nodes.forEach((node, i) => { const [x, y, w, h] = places[order[i]]; node.pos = [x, y]; node.setSize([w, h]); });
  const {subgraph, node} = graph.convertToSubgraph(new Set(graph.nodes));
  subgraph.inputs.slice().forEach(input => subgraph.removeInput(input));  // the frontend shows seeds by itself
  const inner = Object.fromEntries(subgraph.nodes.map((node, i) => [order[i], node]));
  const slot = (path, side) => {
    const [key, name] = path.split('.'), found = inner[key][side].find(slot => slot.name === name);
    if (!found) throw new Error(`no socket ${path}`);
    return [name, inner[key], found];
  };
  for (const [name, inside, socket] of [...inputs, ...widgets].map(path => slot(path, 'inputs')))
    subgraph.addInput(name, socket.type).connect(socket, inside);
  for (const [name, inside, socket] of outputs.map(path => slot(path, 'outputs')))
    subgraph.addOutput(name, socket.type).connect(socket, inside);
  for (const [side, x] of [[subgraph.inputNode, -220], [subgraph.outputNode, 920]]) {
    side.arrange(); side.pos = [x, 0];
  }
  for (const [key, name] of widgets.map(path => path.split('.')))
    node.widgets.find(w => w.name === name).value = inner[key].widgets.find(w => w.name === name).value;
  subgraph.name = node.title = name;
  node.pos = [0, 0]; node.setSize([340, node.computeSize()[1]]);
  await new Promise(r => setTimeout(r, 500));
  return JSON.parse(JSON.stringify(graph.serialize()));
}"""


def build(page: Any, columns: Columns) -> dict[str, Any]:
    """Puts the nodes into an empty graph; their sizes by key."""
    return page.evaluate(BUILD, {t: {key: asdict(node) for key, node in c.items()} for t, c in columns.items()})


def named(name: str) -> str:
    """The same id for the same thing whenever it is built."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dual-process/{name}"))


def write(pages: tuple[Any, Any], name: str, template: Template) -> None:
    """Builds in the classic renderer, measures in both, and leaves room for the larger."""
    page, vue = pages
    sizes = build(page, template.columns)
    *rendered, note = vue.evaluate(SIZES, page.evaluate(PLACE, lay_out(template, sizes, LOW)))
    sizes = {key: (w, max(h, there[1])) for (key, (w, h)), there in zip(sizes.items(), rendered, strict=True)}
    note_height = math.ceil(max(LOW + page.evaluate(CUT), note[1]))  # Nodes 2.0 fits the note's box to its text
    workflow = page.evaluate(PLACE, lay_out(template, sizes, note_height))
    for node in workflow["nodes"]:
        node["properties"].pop("dual_process_view", None)  # every user's node gets a key of its own
    workflow["id"] = named(name)
    workflow["extra"] = {"ds": {"scale": 0.75, "offset": [60, 100]}}
    if app := template.app:
        ids = dict(zip(sizes, page.evaluate("() => window.app.graph.nodes.map(node => node.id)"), strict=False))
        shown = [(ids[key], widget) for key, widget in (path.split(".") for path in app.inputs)]
        workflow["extra"] |= {"linearMode": True}
        workflow["extra"] |= {"linearData": {"inputs": shown, "outputs": [ids[key] for key in app.outputs]}}
    (FOLDER / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n")
    print(f"{name}: {len(workflow['nodes'])} nodes, {len(workflow['links'])} wires")


def write_blueprint(page: Any, name: str, blueprint: Blueprint) -> None:
    """A workflow of one node, its subgraph, as ComfyUI wants blueprints."""
    columns = {str(number): column for number, column in enumerate(blueprint.columns)}
    sizes = build(page, columns)
    places = lay_out(Template(columns, "", lowered={}), sizes, LOW)["places"]
    shown = {side: getattr(blueprint, side) for side in ("inputs", "widgets", "outputs")}
    workflow = page.evaluate(INTO_SUBGRAPH, {"name": name, "places": places, **shown})
    (subgraph,) = workflow["definitions"]["subgraphs"]
    (node,) = workflow["nodes"]
    workflow["id"] = named(name)
    subgraph["id"] = node["type"] = named(f"{name}/subgraph")
    for side in ("inputs", "outputs"):
        for slot in subgraph[side]:
            slot["id"] = named(f"{name}/{side}/{slot['name']}")
    for inner in subgraph["nodes"]:
        inner["properties"].pop("dual_process_view", None)
    subgraph |= {"category": "dual process", "description": blueprint.description}
    workflow["extra"] = {"BlueprintSearchAliases": list(blueprint.aliases)}
    BLUEPRINTS.mkdir(exist_ok=True)
    (BLUEPRINTS / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n")
    print(f"{name}: {len(subgraph['nodes'])} nodes, {len(subgraph['links'])} wires")
