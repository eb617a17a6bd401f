"""Plans of pictures: by the critic, or the user's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from comfy_api.latest import io, ui

from .progress import show_text
from .stages import ShownThinker, Stages, interrupt, thinker_of
from .types import CATEGORY, Critic
from .types import Plan as PlanSocket

SIDES = ("left", "top", "right", "bottom")


class PlanImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessPlanImage",
            display_name="Plan Image",
            category=CATEGORY,
            description="Breaks a prompt into strokes that bring a picture about and facts that can be asked about it. "
            "The critic does so, or you: copy the plan that is shown into own_plan and change it.",
            search_aliases=["prompt plan", "checklist", "facts", "strokes"],
            is_output_node=True,
            inputs=[
                io.String.Input("prompt", multiline=True, default="", tooltip="What the picture is to show."),
                io.String.Input(
                    "own_plan",
                    multiline=True,
                    default="",
                    tooltip="A plan of your own as JSON, in place of the critic's; the output text is one to begin "
                    "with. Facts are questions that Yes or No answers, each with the id of the stroke that brings it "
                    "about; a stroke's region is [left, top, right, bottom], 0 to 1, and may be left out. Empty: the "
                    "critic plans.",
                ),
                Critic.Input("critic", optional=True, tooltip="Who plans. Not needed for a plan of your own."),
            ],
            outputs=[
                PlanSocket.Output(display_name="plan", tooltip="For Paint by Process and Inspect Image."),
                io.String.Output(display_name="text", tooltip="The plan as JSON, to be changed and given as own_plan."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, prompt: str, own_plan: str, critic: Any = None) -> io.NodeOutput:
        from ..core.errors import ProcessError
        from ..process import read_plan
        from ..process.words import plan_in_words

        if own_plan.strip():
            plan = read_plan(own_plan, prompt)
        elif critic is not None:
            plan = planned(critic, prompt, cls.hidden.unique_id)
        else:
            raise ProcessError("There is nobody to plan: connect a critic, or write a plan of your own into own_plan.")
        show_text(plan_in_words(plan).splitlines()[0], cls.hidden.unique_id)
        text = as_text(plan)
        return io.NodeOutput(plan, text, ui=ui.PreviewText(plan_in_words(plan)))


def planned(critic: Any, prompt: str, node_id: str | None) -> Any:
    """A critic's plan. A cancel ends ComfyUI's run."""
    from ..core.errors import StopRequested

    try:
        return ShownThinker(thinker_of(critic), Stages(1, node_id)).plan(prompt)
    except StopRequested:
        interrupt()


def as_text(plan: Any) -> str:
    """A plan as JSON that `read_plan` reads."""
    data = asdict(plan)
    del data["source"]
    for stroke in data["strokes"]:
        stroke["region"] = None if stroke["region"] is None else [stroke["region"][side] for side in SIDES]
    return json.dumps(data, indent=2, ensure_ascii=False)


NODES = [PlanImage]
