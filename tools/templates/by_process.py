"""Templates that paint by process: plan, draft, inspect, refine."""

from __future__ import annotations

from dataclasses import asdict, replace

from dual_process.demo.strokes.process import SETTINGS

from .models import FLUX_KONTEXT, QWEN_IMAGE_EDIT, STROKES, Models
from .parts import Columns, Node, Template
from .teaching import start

PROMPT = "a blue house far left, a white tree near middle and a green ball near right by dusk"
OWN_PROMPT = "a red bicycle leaning on a yellow wall, with a black cat on the left and two green bottles on the right"
SHOWN = ("budget", "refinements", "whole_draft", "restarts")


def process(models: Models, painter: str, settings: dict[str, object], height: int, title: str | None = None) -> Node:
    inputs = {"painter": painter, "critic": models.critic}
    prompt = OWN_PROMPT if models.downloaded else PROMPT
    return Node("DualProcessPaintByProcess", {"prompt": prompt, **settings}, inputs, 380, height, title)


def look(key: str, title: str, width: int, height: int) -> Node:
    return Node("PreviewImage", {}, {"images": f"{key}.filmstrip"}, width, height, title)


def save(name: str) -> Node:
    return Node("DualProcessSaveTrajectory", {"name": name}, {"trajectory": "process.trajectory"}, 300, 130)


def demo() -> Template:
    own = {name: value for name, value in asdict(SETTINGS).items() if name in SHOWN}
    once = {**own, "budget": 1, "whole_draft": True}
    columns: Columns = {
        "1  Models": {**STROKES.loaders, "save": save("demo")},
        "2  Plan, draft, inspect, refine": {
            "process": process(STROKES, "demo.painter", own, 420),
            "single": process(STROKES, "demo.painter", once, 420, "A single pass"),
        },
        "3  Look": {
            "strip": look("process", "Painted by process", 760, 430),
            "draft": look("single", "A single pass, for comparison", 300, 430),
        },
    }
    note = "\n\n".join(
        (
            "## Paint by process",
            "Press **Run**. The prompt is broken into facts and strokes. The painter begins with the empty scene and "
            "adds one thing after the other; the critic inspects every fact after every stroke, and what did not come "
            "out is tried again or taken back. Below, a single pass with the whole prompt: it loses things as soon as "
            "there are three or four.",
            "✓ held   ✗ not   … its stroke has not run yet   ? the critic cannot judge it",
            "Write other prompts of houses, trees and balls, such as “four trees by night”. Everything is kept below "
            "*output/dual_process/trajectories*.",
            "**Your own model**: put its loaders, *Painter* and *Load VLM Critic* in the demo's place.",
        )
    )
    return Template(columns, note, note_width=300, note_below=0)


def downloaded(models: Models, mode: str, sampling: dict[str, object], name: str) -> Template:
    widgets = {"mode": mode, "width": 1024, "height": 1024, **sampling}
    sources = {"model": models.model, "clip": models.clip, "vae": models.vae}
    loaders = {**models.loaders, **models.critic_loader}
    picture = Node(
        "SaveImage", {"filename_prefix": f"dual_process/{name}"}, {"images": "process.image"}, 400, 420, "The result"
    )
    columns: Columns = {
        "1  Models": {key: replace(node, width=320) for key, node in loaders.items()},
        "2  Plan, draft, inspect, refine": {
            "painter": Node("DualProcessPainter", widgets, sources, 380, 380),
            "process": process(models, "painter.painter", {}, 420),
        },
        "3  Look and keep": {"strip": look("process", "All steps", 760, 420), "picture": picture, "save": save(name)},
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
    return Template(columns, note, note_width=320, note_below=0)


BY_PROCESS = {
    "31_demo_paint_by_process": demo(),
    "32_flux_kontext_paint_by_process": downloaded(
        FLUX_KONTEXT, "reference", {"steps": 20, "cfg": 1.0, "guidance": 2.5}, "kontext"
    ),
    "33_qwen_image_edit_paint_by_process": downloaded(
        QWEN_IMAGE_EDIT, "qwen edit plus", {"steps": 20, "cfg": 2.5}, "qwen_image_edit"
    ),
}
