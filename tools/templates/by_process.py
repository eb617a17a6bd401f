"""Templates that paint by process: plan, draft, inspect, refine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from dual_process.demo.strokes.process import SETTINGS

from .models import FLUX_KONTEXT, QWEN_IMAGE_EDIT, STROKES, Models
from .parts import Columns, Node, Template
from .teaching import distill, start

PROMPT = "a yellow house, a blue house and two green trees by dusk"
OWN_PROMPT = "a red bicycle leaning on a yellow wall, with a black cat on the left and two green bottles on the right"
FOUR_THINGS = "a yellow house far middle, a blue house far right, a green ball near left and a white ball near right"
DISTILLING_STEPS = 60
SHOWN = ("budget", "refinements", "whole_draft", "restarts")
DEMO_SETTINGS = {name: value for name, value in asdict(SETTINGS).items() if name in SHOWN}
TALL = 700  # pixels: a node that shows pictures while it runs, and in the classic renderer afterwards, too
SIGNS = "- ✓ held\n- ✗ not\n- … its stroke has not run yet\n- ? the critic cannot judge it"


def process(models: Models, painter: str, settings: Mapping[str, Any]) -> Node:
    inputs = {"painter": painter, "critic": models.critic}
    prompt = OWN_PROMPT if models.downloaded else PROMPT
    return Node("DualProcessPaintByProcess", {"prompt": prompt, **settings}, inputs, 340, TALL)


def save(key: str, name: str, width: int = 700) -> Node:
    """It shows the filmstrip."""
    return Node("DualProcessSaveTrajectory", {"name": name}, {"trajectory": f"{key}.trajectory"}, width, 440)


def report(key: str, width: int = 700) -> Node:
    return Node("PreviewAny", {}, {"source": f"{key}.report"}, width, 240, "What came of it")


def demo() -> Template:
    columns: Columns = {
        "1  Models": STROKES.loaders,
        "2  Plan, draft, inspect, refine": {"process": process(STROKES, "demo.painter", DEMO_SETTINGS)},
        "3  Look and keep": {"save": save("process", "demo"), "report": report("process")},
    }
    note = "\n\n".join(
        (
            "## Paint by process",
            "Press **Run**. The prompt is broken into facts and strokes. The painter begins with the empty scene and "
            "adds one thing after the other; the critic inspects every fact after every stroke, and what did not come "
            "out is tried again or taken back. In one pass the model loses things of such a prompt.",
            SIGNS,
            "Write other prompts of houses, trees and balls, such as “four trees by night”, or take another seed. "
            "**34_demo_steer_by_hand** goes on by hand.",
            "**Your own model**: put its loaders, *Painter* and *Load VLM Critic* in the demo's place.",
        )
    )
    return Template(columns, note, note_width=300, note_below=0)


def by_hand() -> Template:
    def step(number: int, before: str, instruction: str) -> Node:
        inputs = {"painter": "demo.painter", "critic": "demo.critic", "trajectory": f"{before}.trajectory"}
        widgets = {"instruction": instruction, "seed": number}
        return Node("DualProcessProcessStep", widgets, inputs, 250, TALL - 60, f"Step {number}")

    draft = Node(
        "DualProcessPaintByProcess",
        {"prompt": "a blue house far left and a green tree near right by night", **DEMO_SETTINGS, "budget": 1},
        {"painter": "demo.painter", "critic": "demo.critic"},
        250,
        TALL,
        "The empty scene",
    )
    columns: Columns = {
        "1  Models": {key: replace(node, width=250) for key, node in STROKES.loaders.items()},
        "2  Draft": {"draft": draft},
        "3  The plan's next stroke": {"first": step(1, "draft", "")},
        "4  Your own stroke": {"second": step(2, "first", "add a white ball near left")},
        "5  Look and keep": {"save": save("second", "by_hand", 480), "report": report("second", 480)},
    }
    note = "\n\n".join(
        (
            "## Steer by hand",
            "Press **Run**. The first step leaves *instruction* empty: the plan's next stroke. The second is one that "
            "no plan has. Each is inspected; with *keep* “if better”, one that does not help is taken back.",
            SIGNS,
            "Change an instruction or a seed and run again: only what follows is painted anew. Put further steps "
            "behind.",
        )
    )
    return Template(columns, note, note_width=250, note_below=0, between=40)


def downloaded(models: Models, mode: str, sampling: Mapping[str, Any], name: str) -> Template:
    widgets = {"mode": mode, "width": 1024, "height": 1024, **sampling}
    sources = {"model": models.model, "clip": models.clip, "vae": models.vae}
    loaders = {**models.loaders, **models.critic_loader}
    picture = Node("SaveImage", {"filename_prefix": f"dual_process/{name}"}, {"images": "process.image"}, 400, 390)
    columns: Columns = {
        "1  Models": {key: replace(node, width=300) for key, node in loaders.items()},
        "2  Who paints": {"painter": Node("DualProcessPainter", widgets, sources, 280, 400)},
        "3  Plan, draft, inspect, refine": {"process": process(models, "painter.painter", {})},
        "4  Look and keep": {"save": save("process", name, 600), "picture": picture},
    }
    note = "\n\n".join(
        (
            f"## Paint by process with {models.label}",
            "The critic plans the picture and names facts that can be asked. The model drafts it; then the critic "
            "inspects every fact, and what is missing or wrong is mended stroke by stroke: kept where it helped and "
            "harmed nothing, else taken back. The filmstrip shows all of it.",
            start(models),
            "A stroke is a whole pass of the model, and the budget is 12 of them: begin with 4. *Cancel* keeps what is "
            "there. Connect *Plan Image* to write the facts yourself.",
        )
    )
    return Template(columns, note, note_width=280, note_below=1, between=40)


def distilled() -> Template:
    widgets = {"prompt": FOUR_THINGS, **DEMO_SETTINGS}
    inputs = {"painter": "demo.painter", "critic": STROKES.critic}
    lesson = {"clip": STROKES.clip, "critic": STROKES.critic, "trajectories.trajectory0": "process.trajectory"}
    source = {"model": STROKES.model, "vae": STROKES.vae}
    wires = {"prompts": "lesson.prompts", "loss": "lesson.loss"}
    columns: Columns = {
        "1  Models": {key: replace(node, width=250) for key, node in STROKES.loaders.items()},
        "2  Paint step by step": {"process": Node("DualProcessPaintByProcess", widgets, inputs, 250, TALL)},
        "3  What there is to learn": {
            "lesson": Node("DualProcessDistillProcess", {"target_weight": 60.0}, lesson, 250),
            "learnt": Node("PreviewAny", {}, {"source": "lesson.report"}, 250, 150, "How much it is"),
        },
        "4  Train and watch": {"distill": distill(source, {"train_steps": DISTILLING_STEPS}, **wires)},
        "5  One pass, before and after": {
            "picture": Node("PreviewImage", {}, {"images": "distill.comparison"}, 280, 420),
            "save": Node(
                "DualProcessSaveDistilledLoRA", {"name": "dual_process/process"}, {"lora": "distill.lora"}, 280
            ),
        },
    }
    note = "\n\n".join(
        (
            "## Distill a process",
            "Press **Run**; on a CPU it takes about two minutes. A picture is painted step by step. A LoRA then "
            "learns to paint it in one pass from the noise of its draft, and is asked what the plan asks. "
            "*Before* and *after* begin from other noise.",
            "**What so little teaches**: scenes like this one. Of 16 other noises one pass got this prompt right "
            "3 times before and 14 times after, two other prompts of four things with places 9 of 32 times "
            "before, 30 after. Of a prompt that names no places two pictures taught less, and nothing of other "
            "prompts.",
            "**For more**: connect several, or paint many prompts with *Save Trajectory* and name them in "
            "*saved*, and train longer.",
            "**Your own model**: put its loaders, *Painter* and *Load VLM Critic* in the demo's place.",
        )
    )
    return Template(columns, note, note_width=250, note_below=0, between=40)


MODELS = {
    "31_demo_paint_by_process": STROKES,
    "32_flux_kontext_paint_by_process": FLUX_KONTEXT,
    "33_qwen_image_edit_paint_by_process": QWEN_IMAGE_EDIT,
}
BY_PROCESS = {
    "31_demo_paint_by_process": demo(),
    "32_flux_kontext_paint_by_process": downloaded(
        FLUX_KONTEXT, "reference", {"steps": 20, "cfg": 1.0, "guidance": 2.5}, "kontext"
    ),
    "33_qwen_image_edit_paint_by_process": downloaded(
        QWEN_IMAGE_EDIT, "qwen edit plus", {"steps": 20, "cfg": 2.5}, "qwen_image_edit"
    ),
    "34_demo_steer_by_hand": by_hand(),
    "35_demo_distill_a_process": distilled(),
}
