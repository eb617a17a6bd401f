"""Applications of the method, and the templates that teach them to one model or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dual_process.evaluation.control import Control
from dual_process.overlays import Overlay, Range

from .drawn import FOLDED, overlay_node
from .models import Models
from .parts import SPACE, Columns, Node, Template

NARROW, CLOSE = 250, 40  # widths of nodes and between columns, in pixels, where there are five
POSTFIX = " Answer with Yes or No."  # for large critics
WEIGHTS = {"anchors": "anchor_weight", "structure": "structure_weight"}  # widgets of penalties


@dataclass(frozen=True)
class Case:
    """What is taught to one kind of models.

    Attributes:
        overlay: what is drawn on the picture.
        wordings: of the question, the first is asked; the overlay's own if there are none.
        prompts, held_out: of Training Prompts; the node's own if there are none.
        penalties: weights that differ from the preset's.
        settings: of the training, that differ from the preset's.
        hint: the note's, about these models only.
    """

    overlay: Overlay | Range | None = None
    wordings: Sequence[str] = ()
    prompts: Sequence[str] = ()
    held_out: Sequence[str] = ()
    penalties: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""

    @property
    def texts(self) -> Sequence[str]:
        """Wordings of the question."""
        return self.wordings or (self.overlay.questions() if self.overlay else ())


def as_in(control: Control, wordings: Sequence[str] = (), hint: str = "") -> Case:
    """What a control of a demo world teaches."""
    return Case(control.asked[0].overlay, wordings, control.recipe.prompts, control.held_out, hint=hint)


@dataclass(frozen=True)
class Application:
    """What is taught, to demo models and to others: templates for both are made from it.

    Attributes:
        name: as file names have it.
        title: what follows "Teach" in the note.
        asks, change: sentences of the note: what it does, and what to try next.
    """

    name: str
    title: str
    asks: str
    change: str
    demo: Case
    downloaded: Case


def distill(source: Mapping[str, str], settings: Mapping[str, Any] | None = None, **inputs: str) -> Node:
    return Node("DualProcessDistill", settings or {}, {**source, **inputs}, width=470, height=828)


def columns(application: Application, models: Models) -> Columns:
    """From models and prompts to the saved LoRA."""
    case = application.downloaded if models.downloaded else application.demo
    ranged = isinstance(case.overlay, Range)
    width = NARROW if ranged else 320 if models.downloaded else 300
    height = 370 if not models.downloaded else 200 if models.guided else 240
    critic_above, critic_beside = ({}, models.critic_loader) if models.guided else (models.critic_loader, {})
    name = f"{models.name}_{application.name}" if models.downloaded else application.name
    prompts = {"text": "\n".join(case.prompts), "held_out": "\n".join(case.held_out)} if case.prompts else {}
    source, empty = {"model": models.model, "vae": models.vae}, {}
    if models.guided:
        source["negative"] = "empty.CONDITIONING"
        empty["empty"] = Node("CLIPTextEncode", {"text": ""}, {"clip": models.clip}, width, 90, "Empty prompt")
    overlay, ends = {}, {}
    if isinstance(case.overlay, Range):
        ends = range_nodes(case.overlay)
    elif case.overlay is not None:
        drawn = replace(overlay_node(case.overlay), width=width)
        overlay["overlay"] = replace(drawn, properties=FOLDED) if models.downloaded else drawn
    steps = {
        "Models and prompts": {
            **{key: replace(node, width=width) for key, node in {**models.loaders, **critic_above}.items()},
            "prompts": Node("DualProcessTrainingPrompts", prompts, {"clip": models.clip}, width, height),
            **empty,
        },
        "From one end to the other": ends,
        "What the critic is asked": {
            **critic_beside,
            **overlay,
            "question": Node(
                "DualProcessVLMQuestion",
                {"question": case.texts[0] + POSTFIX * models.downloaded},
                {"overlay": "overlay.overlay"} if overlay or ends else {},
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
        "Train and watch": {
            "distill": distill(
                source,
                {
                    **{WEIGHTS[name]: weight for name, weight in case.penalties.items()},
                    **case.settings,
                },
                prompts="prompts.prompts",
                loss="loss.loss",
            ),
        },
        "Save": {
            "save": Node(
                "DualProcessSaveDistilledLoRA",
                {"name": f"dual_process/{name}"},
                {"lora": "distill.lora"},
                NARROW if ranged else 300,
            ),
        },
    }
    filled = [(title, nodes) for title, nodes in steps.items() if nodes]
    return {f"{number}  {title}": nodes for number, (title, nodes) in enumerate(filled, start=1)}


def range_nodes(ends: Range) -> dict[str, Node]:
    """Both ends of a range, folded, and what joins them."""
    drawn = {
        key: replace(overlay_node(end), width=NARROW, properties=FOLDED, title=f"{key.title()} end")
        for key, end in (("first", ends.first), ("last", ends.last))
    }
    inputs = {"first": "first.overlay", "last": "last.overlay"}
    return {**drawn, "overlay": Node("DualProcessOverlayRange", inputs=inputs, width=NARROW)}


def template(application: Application, models: Models) -> Template:
    made = columns(application, models)
    space = 20 if models.downloaded else SPACE
    lowered = dict.fromkeys(range(1, len(made) - 2), space)
    if len(made) == 5:
        return Template(made, note(application, models), note_width=NARROW, lowered=lowered, between=CLOSE)
    return Template(made, note(application, models), lowered=lowered)


def note(application: Application, models: Models) -> str:
    """What the template does, other wordings, and what to change for one's own model."""
    case = application.downloaded if models.downloaded else application.demo
    title = f"## Teach {application.title}" + (f" to {models.label}" if models.downloaded else "")
    wordings = "Wordings to try:\n" + "".join(f"\n- {text}" for text in case.texts)
    tries = " ".join(filter(None, (application.change, case.hint)))
    return "\n\n".join((title, application.asks, start(models), tries, wordings, own_models(models)))


def start(models: Models) -> str:
    if not models.downloaded:
        return "Press **Run**: nothing has to be downloaded. It takes a few minutes on a CPU."
    return (
        f"ComfyUI offers to download the files of {models.label}. The critic is a folder in models/VLM, such as "
        "Qwen2.5-VL-7B-Instruct or idefics2-8b from Hugging Face; or write its id into *download* of *Load VLM Critic* "
        "(advanced)."
    )


def own_models(models: Models) -> str:
    if not models.downloaded:
        return "**Your own model**: put its loaders and *Load VLM Critic* in the demo's place. Write your own prompts."
    return f"**Your own model**: exchange the loaders. End questions to large critics with “{POSTFIX.strip()}”"
