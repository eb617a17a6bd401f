"""Inspect Image: what any picture holds of a plan."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .stages import ShownThinker, Stages, interrupt, thinker_of
from .types import CATEGORY, Critic, Plan, to_comfy, to_engine


class InspectImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessInspectImage",
            display_name="Inspect Image",
            category=CATEGORY,
            description="Shows which facts of a plan a picture holds, as Paint by Process inspects it. Facts that the "
            "critic also finds in an empty grey picture are marked with a question mark: it cannot judge them.",
            search_aliases=["checklist", "verify", "score image", "vqa"],
            is_output_node=True,
            inputs=[
                Critic.Input("critic", tooltip="Who is asked."),
                io.Image.Input("image", tooltip="Pictures of any size, each asked about every fact."),
                Plan.Input("plan", tooltip="The facts, from Plan Image."),
            ],
            outputs=[
                io.String.Output(display_name="readings", tooltip="A line a fact: held or not, the question, and P."),
                io.Image.Output(
                    display_name="image",
                    tooltip="The pictures with the plan's regions, green where all is held, and the facts below.",
                ),
                io.Float.Output(
                    display_name="held",
                    is_output_list=True,
                    tooltip="The share of facts that each picture holds, 0 to 1, of those that can be judged.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, critic: Any, image: Tensor, plan: Any) -> io.NodeOutput:
        from ..core.errors import StopRequested
        from ..process import inspect
        from ..process.files import annotated, pixels
        from ..process.states import HELD, UNJUDGED
        from ..process.words import readings_in_words

        stages = Stages(len(image), cls.hidden.unique_id)
        thinker = ShownThinker(thinker_of(critic), stages)
        lines, drawn, held = [], [], []
        for number, picture in enumerate(to_engine(image).split(1), start=1):
            try:
                readings = inspect(thinker, picture, plan)
            except StopRequested:
                interrupt()
            if stages.is_cancelled():
                interrupt()
            status = [reading.status for reading in readings if reading.status != UNJUDGED]
            held.append(status.count(HELD) / len(status) if status else 0.0)
            lines += [f"image {number}:"] if len(image) > 1 else []
            lines.append(readings_in_words(plan, readings))
            drawn.append(to_comfy(pixels(annotated(picture, plan, readings))))
        pictures, text = torch.cat(drawn), "\n".join(lines)
        output = ui.PreviewImage(pictures, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(text, pictures, held, ui=output)


NODES = [InspectImage]
