"""Asking the critic without training: what it answers, and how surely."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .questions import connected, question_slots
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
                io.Int.Input(
                    "max_new_tokens",
                    default=16,
                    min=1,
                    max=512,
                    advanced=True,
                    tooltip="Longest reply, in tokens.",
                ),
                io.Autogrow.Input("questions", template=question_slots(), optional=True, tooltip="One or more."),
            ],
            outputs=[
                io.String.Output(
                    display_name="answers", tooltip="A line for each picture and wording: reply and P(wanted answer)."
                ),
                io.Float.Output(
                    display_name="p_answer",
                    is_output_list=True,
                    tooltip="P(wanted answer), 0 to 1, a list: the wordings of the first picture, then the next's.",
                ),
                io.Image.Output(
                    display_name="image", tooltip="What the critic saw: each picture with the first question's overlay."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, critic: Any, image: Tensor, max_new_tokens: int, questions: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        asked = [q.worded(text) for q in connected(questions) for text in q.texts]
        asked = [replace(q, answer=q.choices[0]) if q.is_as_before else q for q in asked]
        bar = comfy.utils.ProgressBar(len(image), node_id=cls.hidden.unique_id)
        lines, p_answer, seen = [], [], []
        with outside_inference_mode():
            for number, picture in enumerate(to_engine(image).split(1), start=1):  # one at a time, to save memory
                comfy.model_management.throw_exception_if_processing_interrupted()
                shown, probabilities, replies = ask_about(critic, picture, asked, max_new_tokens)
                seen.append(to_comfy(shown))
                p_answer += probabilities
                lines += [
                    f"image {number}: {q.text} → {reply}   {says(q)} = {p:.3f}"
                    for q, p, reply in zip(asked, probabilities, replies, strict=True)
                ]
                bar.update(1)
        pictures, text = torch.cat(seen), "\n".join(lines)
        output = ui.PreviewImage(pictures, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(text, p_answer, pictures, ui=output)


def ask_about(
    critic: Any, picture: Tensor, asked: list[Any], max_new_tokens: int
) -> tuple[Tensor, list[float], list[str]]:
    """Asks everything about one picture [1, 3, H, W]; questions with the same overlay at once.

    Returns:
        The picture with the first question's overlay, and for each question P(wanted answer) and the reply.
    """
    from ..distillation.asking import Samples, group_questions, score

    seen, probabilities, replies = [], [0.0] * len(asked), [""] * len(asked)
    for _, overlay, members in group_questions(asked):
        seen.append(picture if overlay is None else overlay.apply(picture))
        own = [replace(asked[index], overlay=None) for index in members]  # it is drawn already
        scores = score({own[0].critic: critic}, Samples(seen[-1], [0], None), own)[0]
        for index, p in zip(members, scores.exp().tolist(), strict=True):
            probabilities[index] = p
            beside = {"references": asked[index].references} if asked[index].references else {}
            replies[index] = critic.answer(seen[-1], asked[index].text, max_new_tokens, **beside)[0]
    return seen[0], probabilities, replies


def says(question: Any) -> str:
    """What the number about a question is."""
    return f"expected grade towards {question.answer}" if question.grades else f"P({question.answer})"


NODES = [AskVLMCritic]
