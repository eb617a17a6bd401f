"""Writes `workflows/*.json` and `subgraphs/*.json` from definitions, through ComfyUI's own frontend.

It knows the sizes of nodes, and how subgraphs are written.

    PYTHONPATH=tests:tests/live python tools/templates.py

Needs ComfyUI and Chromium, as the live tests do. Thumbnails are made by `tools/thumbnails.py`.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import comfyui
from live_server import BROWSER, RENDERER, Server
from playwright.sync_api import sync_playwright

FOLDER = comfyui.ROOT / "workflows"
BLUEPRINTS = comfyui.ROOT / "subgraphs"
HORIZON = "Is the overlaid red line aligned with the horizon of the scene?"
PALETTE = "Does the color palette overlaid at the bottom match the image?"
COLORS = ["#6a4a82", "#e89a5c", "#7a5068", "#4a3250"]
HUGGING_FACE = "https://huggingface.co"
FLUX = f"{HUGGING_FACE}/Comfy-Org/flux1-schnell/resolve/main"
COMFY_ORG = f"{HUGGING_FACE}/Comfy-Org"
KLEIN, Z_IMAGE, QWEN = (
    f"{COMFY_ORG}/{name}/resolve/main/split_files" for name in ("flux2-klein", "z_image_turbo", "Qwen-Image_ComfyUI")
)
SDXL = f"{HUGGING_FACE}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
ENCODERS = f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main"
AE = f"{HUGGING_FACE}/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae"


@dataclass(frozen=True)
class Node:
    """A node of a template: its type, values of widgets by name, and inputs by name as "key.output"."""

    type: str
    widgets: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    title: str | None = None
    models: Sequence[Mapping[str, str]] = ()  # files that the frontend offers to download


@dataclass(frozen=True)
class App:
    """What app mode shows beside Run: widgets as "key.widget", and the nodes whose pictures are the result."""

    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Template:
    """Columns of nodes from left to right, each a titled group; the note stands below one."""

    columns: Mapping[str, Mapping[str, Node]]
    note: str
    note_size: tuple[int, int] = (300, 300)
    note_below: int = -1  # the column that it stands below
    lowered: Mapping[int, int] = field(default_factory=lambda: {1: 110})  # columns that wires go past, above the nodes
    app: App | None = None  # opens in app mode; the file's name ends in .app, by which ComfyUI lists apps


@dataclass(frozen=True)
class Blueprint:
    """A subgraph for the node library: columns of nodes, what it shows of them as "key.name", words to find it by."""

    columns: Sequence[Mapping[str, Node]]
    inputs: Sequence[str]
    widgets: Sequence[str]
    outputs: Sequence[str]
    description: str
    aliases: Sequence[str]


def model(name: str, url: str, directory: str) -> dict[str, str]:
    return {"name": name, "url": url, "directory": directory}


def demo_models() -> dict[str, Node]:
    return {"demo": Node("DualProcessLoadDemoModels", width=300)}


def distill(source: Mapping[str, str], settings: Mapping[str, Any] | None = None, **inputs: str) -> Node:
    return Node("DualProcessDistill", settings or {}, {**source, **inputs}, width=470, height=828)


DEMO = {"model": "demo.model", "vae": "demo.vae"}


def teach(
    question: str, overlay: Node, name: str, settings: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Node]]:
    """Columns of the demo models that learn what one question asks about an overlay."""
    return {
        "1  Models and prompts": {
            **demo_models(),
            "prompts": Node("DualProcessTrainingPrompts", inputs={"clip": "demo.clip"}, width=300, height=370),
        },
        "2  What the critic is asked": {
            "overlay": overlay,
            "question": Node("DualProcessVLMQuestion", {"question": question}, {"overlay": "overlay.overlay"}, 300),
            "loss": Node(
                "DualProcessVQALoss",
                inputs={"critic": "demo.critic", "questions.question0": "question.question"},
                height=124,
                width=300,
            ),
        },
        "3  Train and watch": {
            "distill": distill(DEMO, settings, prompts="prompts.prompts", loss="loss.loss"),
        },
        "4  Save": {
            "save": Node(
                "DualProcessSaveDistilledLoRA", {"name": f"dual_process/{name}"}, {"lora": "distill.lora"}, 300
            ),
        },
    }


def unet(name: str, folder: str) -> Node:
    """`folder` is the address that the file's name stands behind."""
    models = [model(name, f"{folder}/{name}", "diffusion_models")]
    return Node("UNETLoader", {"unet_name": name}, width=320, models=models)


def clip(name: str, folder: str, type: str) -> Node:
    widgets = {"clip_name": name, "type": type}
    return Node("CLIPLoader", widgets, width=320, models=[model(name, f"{folder}/{name}", "text_encoders")])


def vae(name: str, folder: str) -> Node:
    return Node("VAELoader", {"vae_name": name}, width=320, models=[model(name, f"{folder}/{name}", "vae")])


FLUX_1_PARTS = {
    "clip": Node(
        "DualCLIPLoader",
        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
        width=320,
        models=[
            model(name, f"{ENCODERS}/{name}", "text_encoders")
            for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")
        ],
    ),
    "vae": vae("ae.safetensors", AE),
}
PROMPTS = {
    "text": "a photo of a wide landscape at noon\na painting of a harbour town by the sea\n"
    "a photo of a desert road at sunset\na photo of a wheat field under clouds",
    "held_out": "a photo of a lighthouse on a rocky shore\na watercolour of a mountain lake",
}


def teach_downloaded(label: str, models: Mapping[str, Node], name: str, guided: bool = False) -> Template:
    """A horizon for a model that ComfyUI offers to download, from one file ("checkpoint") or three.

    `guided`: its preset uses classifier-free guidance, which needs an empty prompt.
    """
    made = dict.fromkeys(("unet", "clip", "vae"), "checkpoint") if "checkpoint" in models else {}
    source = {part: f"{made.get(key, key)}.{part.upper()}" for part, key in (("model", "unet"), ("vae", "vae"))}
    text = f"{made.get('clip', 'clip')}.CLIP"
    empty = {"empty": Node("CLIPTextEncode", {"text": ""}, {"clip": text}, 320, 90, "Empty prompt")} if guided else {}
    wires = {"negative": "empty.CONDITIONING"} if guided else {}
    return Template(
        columns={
            "1  Models and prompts": {
                **models,
                "prompts": Node("DualProcessTrainingPrompts", PROMPTS, {"clip": text}, 320, 200 if guided else 280),
                **empty,
            },
            "2  What the critic is asked": {
                "critic": Node("DualProcessLoadVLMCritic", {"model": "Qwen2.5-VL-7B-Instruct"}, width=320),
                "overlay": Node("DualProcessHorizonOverlay", {"position": 0.3}, width=320),
                "question": Node(
                    "DualProcessVLMQuestion",
                    {"question": f"{HORIZON} Answer with Yes or No."},
                    {"overlay": "overlay.overlay"},
                    320,
                    224,
                ),
                "loss": Node(
                    "DualProcessVQALoss",
                    inputs={"critic": "critic.critic", "questions.question0": "question.question"},
                    height=124,
                    width=320,
                ),
            },
            "3  Train and watch": {
                "distill": distill({**source, **wires}, prompts="prompts.prompts", loss="loss.loss")
            },
            "4  Save": {
                "save": Node(
                    "DualProcessSaveDistilledLoRA",
                    {"name": f"dual_process/{name}_horizon"},
                    {"lora": "distill.lora"},
                    300,
                ),
            },
        },
        note=f"## A horizon for {label}\n\nComfyUI offers to download the files of {label}. The critic is a "
        "folder in models/VLM, such as Qwen2.5-VL-7B-Instruct from Hugging Face; or write its id "
        "into *download* of *Load VLM Critic* (advanced).",
        note_size=(300, 200),
        lowered={1: 20},
    )


TEACH_A_HORIZON = teach(HORIZON, Node("DualProcessHorizonOverlay", {"position": 0.3}, width=300), "horizon")

TEMPLATES: dict[str, Template] = {
    "01_demo_teach_a_horizon": Template(
        columns=TEACH_A_HORIZON,
        note="## Teach a horizon\n\nPress **Run**: nothing has to be downloaded. In a few minutes on a CPU "
        "the tiny demo model learns to put the horizon on the red line.\n\n- *Horizon Overlay* draws the "
        "line. Move *position* and run again.\n- *Stop and keep* ends the training early.\n\nNext: "
        "**03_demo_use_a_saved_lora**.",
    ),
    "02_demo_teach_a_palette": Template(
        columns=teach(
            PALETTE,
            Node("DualProcessPaletteOverlay", {"colors": COLORS}, width=300),
            "palette",
            {"anchor_weight": 0.5, "structure_weight": 0.1},  # as the demo's own palette control
        ),
        note="## Teach a palette\n\nPress **Run**: nothing has to be downloaded. The critic is asked whether "
        "the picture matches the swatches along its bottom edge, and the LoRA learns to paint in these "
        "colours. *structure_weight*, an advanced setting, keeps every line in its place.\n\nChange the "
        "*colors* and run again. Colours near those of the prompts are learnt best by the tiny model.",
    ),
    "03_demo_use_a_saved_lora": Template(
        columns={
            "1  Model, LoRA and prompt": {
                **demo_models(),
                "lora": Node(
                    "LoraLoader",
                    {"lora_name": "dual_process_demo/horizon_at_0.30.safetensors"},
                    {"model": "demo.model", "clip": "demo.clip"},
                    300,
                ),
                "text": Node(
                    "CLIPTextEncode",
                    {"text": "a sunset sky over the grass with a house"},
                    {"clip": "lora.CLIP"},
                    300,
                    100,
                ),
                "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 4}, width=300),
            },
            "2  Without and with the LoRA": {
                "without": Node(
                    "KSampler",
                    {
                        "seed": 7,
                        "steps": 1,
                        "cfg": 1,
                        "sampler_name": "euler",
                        "scheduler": "simple",
                        "control_after_generate": "fixed",
                    },
                    {
                        "model": "demo.model",
                        "positive": "text.CONDITIONING",
                        "negative": "text.CONDITIONING",
                        "latent_image": "latent.LATENT",
                    },
                    300,
                ),
                "with": Node(
                    "KSampler",
                    {
                        "seed": 7,
                        "steps": 1,
                        "cfg": 1,
                        "sampler_name": "euler",
                        "scheduler": "simple",
                        "control_after_generate": "fixed",
                    },
                    {
                        "model": "lora.MODEL",
                        "positive": "text.CONDITIONING",
                        "negative": "text.CONDITIONING",
                        "latent_image": "latent.LATENT",
                    },
                    300,
                ),
            },
            "3  Decode and draw the line": {
                "decode_without": Node("VAEDecode", {}, {"samples": "without.LATENT", "vae": "demo.vae"}, 260),
                "decode_with": Node("VAEDecode", {}, {"samples": "with.LATENT", "vae": "demo.vae"}, 260),
                "overlay": Node("DualProcessHorizonOverlay", {"position": 0.3}, width=260),
                "line_without": Node(
                    "DualProcessApplyOverlay", {}, {"image": "decode_without.IMAGE", "overlay": "overlay.overlay"}, 260
                ),
                "line_with": Node(
                    "DualProcessApplyOverlay", {}, {"image": "decode_with.IMAGE", "overlay": "overlay.overlay"}, 260
                ),
            },
            "4  Look": {
                "shown_without": Node(
                    "PreviewImage", {}, {"images": "line_without.image"}, 280, 260, "Without the LoRA"
                ),
                "shown_with": Node("PreviewImage", {}, {"images": "line_with.image"}, 280, 260, "With the LoRA"),
            },
        },
        note="## Use a LoRA\n\nPress **Run**. The LoRA in *Load LoRA* ships with the pack and puts the "
        "horizon on the line that is drawn. Choose your own after running **01_demo_teach_a_horizon** "
        "(press R to refresh the list).",
        note_size=(280, 150),
    ),
    "04_demo_score_pictures": Template(
        columns={
            "1  Model and prompt": {
                **demo_models(),
                "text": Node("CLIPTextEncode", {"text": "a night sky over the sea"}, {"clip": "demo.clip"}, 300, 100),
                "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 3}, width=300),
            },
            "2  Pictures": {
                "sample": Node(
                    "KSampler",
                    {
                        "seed": 3,
                        "steps": 1,
                        "cfg": 1,
                        "sampler_name": "euler",
                        "scheduler": "simple",
                        "control_after_generate": "fixed",
                    },
                    {
                        "model": "demo.model",
                        "positive": "text.CONDITIONING",
                        "negative": "text.CONDITIONING",
                        "latent_image": "latent.LATENT",
                    },
                    300,
                ),
                "decode": Node("VAEDecode", {}, {"samples": "sample.LATENT", "vae": "demo.vae"}, 300),
            },
            "3  Questions": {
                "overlay": Node("DualProcessHorizonOverlay", {"position": 0.5}, width=300),
                "line": Node("DualProcessVLMQuestion", {"question": HORIZON}, {"overlay": "overlay.overlay"}, 300),
                "night": Node("DualProcessVLMQuestion", {"question": "Is it night?"}, width=300),
            },
            "4  What the critic says": {
                "ask": Node(
                    "DualProcessAskVLMCritic",
                    {},
                    {
                        "critic": "demo.critic",
                        "image": "decode.IMAGE",
                        "questions.question0": "line.question",
                        "questions.question1": "night.question",
                    },
                    460,
                    400,
                ),
                "answers": Node("PreviewAny", {}, {"source": "ask.answers"}, 320, 320, "Answers"),
            },
        },
        note="## Score pictures\n\nPress **Run**. Try questions here before you train on them: if P(answer) "
        "cannot tell a good picture from a bad one, training will not either.\n\nPut *Load Image* in the "
        "place of the sampler for your own pictures, and *Load VLM Critic* in that of the demo critic.",
        note_size=(300, 200),
        note_below=0,
        lowered={1: 110, 2: 110},
    ),
    "05_flux_schnell_teach_a_horizon": teach_downloaded(
        "Flux schnell", {"unet": unet("flux1-schnell.safetensors", FLUX), **FLUX_1_PARTS}, "flux_schnell"
    ),
    "06_demo_teach_a_horizon.app": Template(
        columns={
            **TEACH_A_HORIZON,
            "4  Save": {
                **TEACH_A_HORIZON["4  Save"],
                "picture": Node(
                    "SaveImage", {"filename_prefix": "dual_process/horizon"}, {"images": "distill.comparison"}, 300, 320
                ),
            },
        },
        note="## An app\n\n**01_demo_teach_a_horizon** in app mode, which shows only the question, the line's "
        "*position*, the training and the pictures before and after. *Enter app mode* in the menu of the "
        "workflow's tab goes back there.",
        note_size=(300, 180),
        note_below=0,
        app=App(["question.question", "overlay.position", "distill.view"], ["picture"]),
    ),
    "07_flux_dev_teach_a_horizon": teach_downloaded(
        "Flux dev",
        {
            "unet": unet("flux1-dev.safetensors", f"{COMFY_ORG}/flux1-dev/resolve/main"),
            **FLUX_1_PARTS,
        },
        "flux_dev",
    ),
    "08_flux2_klein_teach_a_horizon": teach_downloaded(
        "FLUX.2 klein",
        {
            "unet": unet("flux-2-klein-4b.safetensors", f"{KLEIN}/diffusion_models"),
            "clip": clip("qwen_3_4b.safetensors", f"{KLEIN}/text_encoders", "flux2"),
            "vae": vae(
                "flux2-vae.safetensors",
                f"{COMFY_ORG}/flux2-dev/resolve/main/split_files/vae",
            ),
        },
        "flux2_klein",
    ),
    "09_z_image_turbo_teach_a_horizon": teach_downloaded(
        "Z-Image turbo",
        {
            "unet": unet("z_image_turbo_bf16.safetensors", f"{Z_IMAGE}/diffusion_models"),
            "clip": clip("qwen_3_4b.safetensors", f"{Z_IMAGE}/text_encoders", "lumina2"),
            "vae": vae("ae.safetensors", f"{Z_IMAGE}/vae"),
        },
        "z_image_turbo",
    ),
    "10_qwen_image_teach_a_horizon": teach_downloaded(
        "Qwen-Image",
        {
            "unet": unet("qwen_image_fp8_e4m3fn.safetensors", f"{QWEN}/diffusion_models"),
            "clip": clip(
                "qwen_2.5_vl_7b_fp8_scaled.safetensors",
                f"{QWEN}/text_encoders",
                "qwen_image",
            ),
            "vae": vae("qwen_image_vae.safetensors", f"{QWEN}/vae"),
        },
        "qwen_image",
        guided=True,
    ),
    "11_sdxl_teach_a_horizon": teach_downloaded(
        "SDXL",
        {
            "checkpoint": Node(
                "CheckpointLoaderSimple",
                {"ckpt_name": "sd_xl_base_1.0.safetensors"},
                width=320,
                models=[model("sd_xl_base_1.0.safetensors", SDXL, "checkpoints")],
            )
        },
        "sdxl",
        guided=True,
    ),
}

SUBGRAPHS: dict[str, Blueprint] = {
    "Distill from one question": Blueprint(
        columns=[
            {
                "question": Node("DualProcessVLMQuestion", {"question": "Is it night?"}, width=300),
                "loss": Node(
                    "DualProcessVQALoss", inputs={"questions.question0": "question.question"}, height=124, width=300
                ),
            },
            {"distill": distill({"loss": "loss.loss"})},
        ],
        inputs=["distill.model", "distill.vae", "distill.prompts", "loss.critic", "question.overlay"],
        widgets=["question.question", "question.answer", "distill.preset", "distill.train_steps"],
        outputs=["distill.lora", "distill.comparison"],
        description="Trains a LoRA until the critic gives the wanted answer to one question about the model's "
        "pictures: VLM Question, VQA Loss and Distill LoRA in one node. Open it to watch the training.",
        aliases=["dual process", "distill lora", "train lora", "vlm question"],
    ),
}

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
  await new Promise(r => setTimeout(r, 3000));
  return window.app.graph.nodes.map(node => [...node.size]);
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
TITLE, GAP, MARGIN, HEAD = 30, 26, 12, 52  # pixels: a node's title, between nodes, around a group, a group's title
BETWEEN = 60  # columns


def lay_out(template: Template, sizes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Places of nodes, groups and note: columns from the left, nodes from the top."""
    places, groups, ends, x = {}, [], [], 0.0
    for number, (title, column) in enumerate(template.columns.items()):
        y = float(template.lowered.get(number, 0))
        width = max(node.width or sizes[key][0] for key, node in column.items())
        for key, node in column.items():
            height = max(node.height or 0, sizes[key][1])
            places[key] = [x, y + TITLE, node.width or width, height]
            y += TITLE + height + GAP
        groups.append([title, x - MARGIN, -HEAD, width + 2 * MARGIN, y - GAP + HEAD + MARGIN])
        ends.append((x, y + MARGIN + GAP))
        x += width + BETWEEN
    left, below = ends[template.note_below]
    note = {"text": template.note, "pos": [left, below + TITLE], "size": list(template.note_size)}
    return {"places": places, "groups": groups, "note": note}


def build(page: Any, columns: Mapping[str, Mapping[str, Node]]) -> dict[str, Any]:
    """Puts the nodes into an empty graph; their sizes by key."""
    return page.evaluate(BUILD, {t: {key: asdict(node) for key, node in c.items()} for t, c in columns.items()})


def named(name: str) -> str:
    """The same id for the same thing whenever it is built."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"dual-process/{name}"))


def write(pages: tuple[Any, Any], name: str, template: Template) -> None:
    """Builds in the classic renderer, measures in both, and leaves room for the larger."""
    page, vue = pages
    sizes = build(page, template.columns)
    rendered = vue.evaluate(SIZES, page.evaluate(PLACE, lay_out(template, sizes)))
    sizes = {key: (w, max(h, there[1])) for (key, (w, h)), there in zip(sizes.items(), rendered, strict=False)}
    workflow = page.evaluate(PLACE, lay_out(template, sizes))
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
    places = lay_out(Template(columns, "", lowered={}), sizes)["places"]
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


def open_page(browser: Any, server: Server) -> Any:
    page = browser.new_context(viewport={"width": 1600, "height": 1000}).new_page()
    page.set_default_timeout(600_000)
    page.goto(server.address)
    page.wait_for_function("window.app && window.app.extensionManager")
    return page


def main() -> None:
    server = Server(Path(tempfile.mkdtemp()))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
            pages = (open_page(browser, server), open_page(browser, server))
            for page, vue in zip(pages, (False, True), strict=True):
                page.evaluate(RENDERER, vue)
            for name, template in TEMPLATES.items():
                write(pages, name, template)
            for name, blueprint in SUBGRAPHS.items():
                write_blueprint(pages[0], name, blueprint)
            browser.close()
    finally:
        server.close()


if __name__ == "__main__":
    main()
