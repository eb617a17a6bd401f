"""Asking the critic without training: what it answers, and how surely."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from .questions import question_slots
from .types import CATEGORY, Critic, outside_inference_mode, to_comfy, to_engine


class AskVLMCritic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessAskVLMCritic",
            display_name="Ask VLM Critic",
            category=CATEGORY,
            description="Shows what the critic replies about pictures and how probable the wanted answers are to it. "
            "Try questions here before you train on them.",
            search_aliases=["score image", "vqa", "rate"],
            is_output_node=True,
            inputs=[
                Critic.Input("critic", tooltip="Who is asked."),
                io.Image.Input("image", tooltip="Pictures of any size, each asked every question."),
                io.Autogrow.Input("questions", template=question_slots(), tooltip="One or more questions."),
                io.Int.Input(
                    "max_new_tokens",
                    default=16,
                    min=1,
                    max=512,
                    advanced=True,
                    tooltip="Longest reply, in tokens.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="answers", tooltip="A line for each picture and question: reply and P(wanted answer)."
                ),
                io.Float.Output(
                    display_name="p_answer",
                    is_output_list=True,
                    tooltip="P(wanted answer), 0 to 1, a list: the questions of the first picture, then the next's.",
                ),
                io.Image.Output(
                    display_name="image", tooltip="What the critic saw: each picture with the first question's overlay."
                ),
            ],
        )

    @classmethod
    def execute(cls, critic: Any, image: Tensor, questions: dict[str, Any], max_new_tokens: int) -> io.NodeOutput:
        asked = [q for q in questions.values() if q is not None]
        pictures = to_engine(image)
        with outside_inference_mode():
            seen = [pictures if q.overlay is None else q.overlay.apply(pictures) for q in asked]
            probabilities = [
                critic.log_likelihood(s, [q]).exp()[:, 0].tolist() for s, q in zip(seen, asked, strict=True)
            ]
            replies = [critic.answer(s, q.text, max_new_tokens) for s, q in zip(seen, asked, strict=True)]
        rows = range(len(pictures))
        lines = [
            f"image {i + 1}: {q.text} → {replies[n][i]}   P({q.answer}) = {probabilities[n][i]:.3f}"
            for i in rows
            for n, q in enumerate(asked)
        ]
        shown = to_comfy(seen[0])
        text = "\n".join(lines)
        output = ui.PreviewImage(shown, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(text, [p[i] for i in rows for p in probabilities], shown, ui=output)


NODES = [AskVLMCritic]
