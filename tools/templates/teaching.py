"""Applications of the method, and the templates that teach them to one model or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .models import Models
from .parts import Columns, Node, Template

POSTFIX = " Answer with Yes or No."  # for large critics


@dataclass(frozen=True)
class Case:
    """What is taught to one kind of models.

    Attributes:
        prompts: widgets of Training Prompts.
        settings: widgets of Distill LoRA.
    """

    question: str
    overlay: Node
    prompts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Application:
    """What is taught, to the demo models and to others: templates for both are made from it."""

    name: str
    title: str
    demo: Case
    downloaded: Case
    note: str  # of the demo's template


def distill(source: Mapping[str, str], settings: Mapping[str, Any] | None = None, **inputs: str) -> Node:
    return Node("DualProcessDistill", settings or {}, {**source, **inputs}, width=470, height=828)


def columns(application: Application, models: Models) -> Columns:
    """From models and prompts to the saved LoRA."""
    case = application.downloaded if models.downloaded else application.demo
    width = 320 if models.downloaded else 300
    height = 370 if not models.downloaded else 200 if models.guided else 280
    name = f"{models.name}_{application.name}" if models.downloaded else application.name
    source, empty = {"model": models.model, "vae": models.vae}, {}
    if models.guided:
        source["negative"] = "empty.CONDITIONING"
        empty["empty"] = Node("CLIPTextEncode", {"text": ""}, {"clip": models.clip}, width, 90, "Empty prompt")
    return {
        "1  Models and prompts": {
            **models.loaders,
            "prompts": Node("DualProcessTrainingPrompts", case.prompts, {"clip": models.clip}, width, height),
            **empty,
        },
        "2  What the critic is asked": {
            **models.critic_loader,
            "overlay": replace(case.overlay, width=width),
            "question": Node(
                "DualProcessVLMQuestion",
                {"question": case.question + POSTFIX * models.downloaded},
                {"overlay": "overlay.overlay"},
                width,
                224 if models.downloaded else None,
            ),
            "loss": Node(
                "DualProcessVQALoss",
                inputs={"critic": models.critic, "questions.question0": "question.question"},
                height=124,
                width=width,
            ),
        },
        "3  Train and watch": {
            "distill": distill(source, case.settings, prompts="prompts.prompts", loss="loss.loss"),
        },
        "4  Save": {
            "save": Node(
                "DualProcessSaveDistilledLoRA", {"name": f"dual_process/{name}"}, {"lora": "distill.lora"}, 300
            ),
        },
    }


def template(application: Application, models: Models) -> Template:
    made = columns(application, models)
    if not models.downloaded:
        return Template(made, application.note)
    note = (
        f"## {application.title} for {models.label}\n\nComfyUI offers to download the files of {models.label}. The "
        "critic is a folder in models/VLM, such as Qwen2.5-VL-7B-Instruct from Hugging Face; or write its id into "
        "*download* of *Load VLM Critic* (advanced)."
    )
    return Template(made, note, note_size=(300, 200), lowered={1: 20})
