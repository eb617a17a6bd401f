"""Errors where the eyes are: the sentence stands in a toast and on the node's face, in both renderers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfyui
import pytest
from live_server import Server, open_page

pytestmark = [pytest.mark.comfyui, pytest.mark.browser]
HORIZON = json.loads((comfyui.ROOT / "workflows" / "01_demo_teach_a_horizon.json").read_text())
TOOLS = """
const graph = window.app.graph;
const find = type => graph.nodes.find(n => n.type === `DualProcess${type}`);
const set = (type, name, value) => { find(type).widgets.find(w => w.name === name).value = value; };
const add = (type, values, to, input) => { const node = LiteGraph.createNode(type); graph.add(node);
  for (const [name, value] of Object.entries(values)) node.widgets.find(w => w.name === name).value = value;
  node.pos = [0, -400]; node.connect(0, find(to), input); return node; };
const bypass = type => { find(type).mode = 4; };
"""
# What is done to the template, the node that says so, and what it says first.
WRONG = {
    "empty question": (
        "set('VLMQuestion', 'question', ' '); find('VLMQuestion').disconnectInput(0)",
        "VLMQuestion",
        "The question is empty: type one, or connect an overlay",
    ),
    "empty keep question": (
        "add('DualProcessKeepQuestion', {question: ' '}, 'VQALoss', 'questions.question1')",
        "KeepQuestion",
        "The question is empty: type one.",
    ),
    "two answers to one question": (
        "const other = add('DualProcessVLMQuestion', {answer: 'No'}, 'VQALoss', 'questions.question1');"
        "find('HorizonOverlay').connect(0, other, 'overlay')",
        "Distill",
        "The question 'Is the overlaid red line aligned with the horizon of the scene?' is to be answered",
    ),
    "question longer than the critic reads": (
        "set('VLMQuestion', 'question', 'Is the horizon of the scene '.repeat(40))",
        "Distill",
        "The question with its pictures takes",
    ),
    "no folder of a critic": (
        "add('DualProcessLoadVLMCritic', {}, 'VQALoss', 'critic')",
        "LoadVLMCritic",
        "Expected the folder of a vision-language model below models/VLM or models/LLM",
    ),
    "name outside the folder": (
        "set('SaveDistilledLoRA', 'name', '../horizon')",
        "SaveDistilledLoRA",
        "Expected a name below models/loras such as 'horizon' or 'mine/horizon', got '../horizon'.",
    ),
    "512 pixels on the demo model": (
        "add('EmptyLatentImage', {width: 512, height: 512}, 'Distill', 'latent')",
        "Distill",
        "512 × 512 pixels are too many for demo models, which paint 112 × 112.",
    ),
    "no prompt": ("set('TrainingPrompts', 'text', '# none')", "TrainingPrompts", "There is no training prompt:"),
    "question bypassed": ("bypass('VLMQuestion')", "VQALoss", "No question is connected: connect a VLM Question"),
    "Distill LoRA bypassed": ("bypass('Distill')", "SaveDistilledLoRA", "There is no LoRA to save: connect"),
}
TOASTS = "[...document.querySelectorAll('.p-toast-message')].map(t => t.innerText)"
FACES = "[...document.querySelectorAll('.dp-error, .dp-status')].map(t => t.textContent)"


def test_the_sentence_stands_in_a_toast_and_on_the_node(server: Server, context: Any, tmp_path: Path) -> None:
    page = open_page(server, context)
    for name, (change, node, words) in WRONG.items():
        page.evaluate("data => window.app.loadGraphData(data)", HORIZON)
        page.wait_for_timeout(1000)
        page.evaluate(
            f"() => {{ {TOOLS} set('Distill', 'train_steps', 1); set('Distill', 'anchor_pool', 2); {change} }}"
        )
        page.wait_for_timeout(500)
        page.evaluate("() => window.app.queuePrompt(0, 1)")
        title = page.evaluate(f"type => {{ {TOOLS} return find(type).title }}", node)
        page.wait_for_function(f"said => {TOASTS}.some(t => t.startsWith(said))", arg=f"{title}\n{words}")
        page.wait_for_function(f"words => {FACES}.some(t => t.startsWith(words))", arg=words)
        page.screenshot(path=tmp_path / f"{name.replace(' ', '_')}.png")
        texts = page.evaluate(f"[...{TOASTS}, ...{FACES}]")
        assert not any(str(path) in text for text in texts for path in (server.base, Path.home()))
    size = page.evaluate(f"() => {{ {TOOLS} return [...find('SaveDistilledLoRA').size] }}")
    page.evaluate(f"() => {{ {TOOLS} find('Distill').mode = 0; window.app.queuePrompt(0, 1); }}")
    page.wait_for_function("document.querySelectorAll('.dp-error').length === 0")
    height = page.evaluate(f"() => {{ {TOOLS} return find('SaveDistilledLoRA').size[1] }}")
    assert height < size[1], "the node is as high as before"
    page.wait_for_function("document.querySelector('.dp-saved').textContent !== ''")
