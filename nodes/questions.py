"""What the critic is asked, and how that makes a loss."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .progress import show_text
from .refusals import refused
from .types import CATEGORY, Critic, Loss, Overlay, Question, VqaTerms, to_engine

MAX_QUESTIONS = 16


def field_help(owner: Any, name: str) -> str:
    """The help text of a dataclass field, so that nodes, command line and documentation say the same."""
    return next(f.metadata["help"] for f in fields(owner) if f.name == name)


def question_slots() -> io.Autogrow.TemplatePrefix:
    return io.Autogrow.TemplatePrefix(
        Question.Input("question", tooltip="A question from a VLM Question node; a new socket appears for the next."),
        prefix="question",
        min=0,  # checked by `connected`, which says what to do
        max=MAX_QUESTIONS,
    )


def connected(questions: dict[str, Any] | None) -> list[Any]:
    """The questions of a node's sockets, gaps left out.

    Raises:
        RecipeError: there is none.
    """
    from ..distillation import RecipeError

    found = [question for wire in (questions or {}).values() if wire is not None for question in wire]
    if not found:
        raise RecipeError(
            "No question is connected: connect a VLM Question, and see that it is neither muted nor bypassed."
        )
    return found


def check_text(node: type[io.ComfyNode], question: str | None) -> bool | str:
    """For a node's `validate_inputs`: a text that comes by a wire is not known yet (None)."""
    return True if question is None or question.strip() else refused(node, "The question is empty: type one.")


def prompts_input() -> io.String.Input:
    return io.String.Input(
        "prompts",
        default="",
        optional=True,
        advanced=True,
        tooltip="Which training prompts the question is for, by their place in Distill LoRA counted from 1, such as "
        "1, 3-5. Empty: all.",
    )


def prompt_numbers(text: str) -> tuple[int, ...] | None:
    """Indices from 0 of "1, 3-5", None for an empty text.

    Raises:
        RecipeError: the text is no such list.
    """
    from ..distillation import RecipeError

    numbers: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (last and not last.isdecimal()) or not 0 < int(first) <= int(last or first):
            raise RecipeError(f"Expected prompts as numbers counted from 1, such as '1, 3-5', got {text!r}.")
        numbers += range(int(first) - 1, int(last or first))
    return tuple(dict.fromkeys(numbers)) or None


def control_questions(question: str, answer: str, weight: float, overlay: Any, paraphrases: str) -> tuple[Any, ...]:
    """The question that is typed, with its other wordings, one a line; those of the overlay where none is typed.

    Raises:
        RecipeError: there is neither, or other wordings of nothing.
    """
    from ..distillation import Question as Asked
    from ..distillation import RecipeError, overlay_questions

    others = tuple(filter(None, (line.strip() for line in paraphrases.splitlines())))
    if question.strip():
        return (Asked(question.strip(), answer.strip(), weight, overlay, paraphrases=others),)
    if overlay is None:
        raise RecipeError("The question is empty: type one, or connect an overlay, which brings its own along.")
    if others:
        raise RecipeError("There are paraphrases of no question: type it, or empty them to ask the overlay's own.")
    return overlay_questions(overlay, answer.strip(), weight)


def overlay_guards(overlay: Any, weight: float) -> tuple[Any, ...]:
    """What is asked beside a question of some weight, so that nobody paints the overlay.

    Raises:
        RecipeError: there is no overlay.
    """
    from ..distillation import RecipeError, guard_questions
    from ..distillation.presets import KEEP_WEIGHT

    if overlay is None:
        raise RecipeError("Guards are the overlay's: connect one, or switch them off.")
    return guard_questions(overlay, KEEP_WEIGHT * weight)


class VLMQuestion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..distillation import Question as Asked

        return io.Schema(
            node_id="DualProcessVLMQuestion",
            display_name="VLM Question",
            category=CATEGORY,
            description="A question for the critic and the answer that is wanted. Left empty, it is the "
            "overlay's own, in several wordings.",
            search_aliases=["vqa question", "ask", "paraphrase", "guard"],
            inputs=[
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Is the overlaid red line aligned with the horizon of the scene?",
                    tooltip=f"{field_help(Asked, 'text')} A Yes/No question works best. Empty: the overlay's own "
                    "wordings.",
                ),
                io.String.Input("answer", default="Yes", tooltip=field_help(Asked, "answer")),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    tooltip=f"{field_help(Asked, 'weight')} Only ratios between questions matter.",
                ),
                Overlay.Input("overlay", optional=True, tooltip=field_help(Asked, "overlay")),
                io.String.Input(
                    "contrast",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=f"{field_help(Asked, 'contrast')} For questions other than Yes/No. Empty: none.",
                ),
                prompts_input(),
                io.String.Input(
                    "paraphrases",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=f"{field_help(Asked, 'paraphrases')} One a line; wordings in Distill LoRA says "
                    "how they are asked.",
                ),
                io.Boolean.Input(
                    "guards",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Also ask the overlay's guard questions, such as whether the image is free of the line: "
                    "without the overlay, so that the model does not learn to paint it. Together half the weight.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures that the critic sees beside the judged one; a batch is picture A, picture B and "
                    "so on. Ask for instance: Is it in the same style as picture A?",
                ),
                io.String.Input(
                    "grades",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For a graded question, its answers from one end to the other, such as 1, 2, 3, 4, 5; "
                    "answer is the end that is wanted. The expected grade then counts. Empty: none.",
                ),
            ],
            outputs=[
                Question.Output(display_name="question", tooltip="For VQA Loss or Ask VLM Critic, with all wordings.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        question: str,
        answer: str,
        weight: float,
        overlay: Any = None,
        contrast: str = "",
        prompts: str = "",
        paraphrases: str = "",
        guards: bool = False,
        references: Tensor | None = None,
        grades: str = "",
    ) -> io.NodeOutput:
        from ..core.picture import Picture

        other, chosen = contrast.strip() or None, prompt_numbers(prompts)
        control = control_questions(question, answer, weight, overlay, paraphrases)
        changes = {
            "references": () if references is None else tuple(map(Picture.from_tensor, to_engine(references))),
            "grades": tuple(filter(None, (grade.strip() for grade in grades.split(",")))),
        }
        asked = [replace(q, prompts=chosen, contrast=other, **changes) for q in control]
        asked += [replace(q, prompts=chosen) for q in (overlay_guards(overlay, weight) if guards else ())]
        if guards or not question.strip():  # nobody has typed these
            show_text("\n".join(text for q in asked for text in q.texts), cls.hidden.unique_id)
        return io.NodeOutput(tuple(asked))


class KeepQuestion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..distillation import Question as Asked
        from ..distillation.question import AS_BEFORE

        return io.Schema(
            node_id="DualProcessKeepQuestion",
            display_name="Keep Question",
            category=CATEGORY,
            description="A question about what must stay while the control is learnt, shown apart from others. With "
            "the answer 'as before' the critic's own answer about the untrained model's picture is kept.",
            search_aliases=["preserve", "guard", "regularization"],
            inputs=[
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Is there a tree in the image?",
                    tooltip="The question, as the critic reads it. Ask for what the prompts promise.",
                ),
                io.String.Input("answer", default=AS_BEFORE, tooltip=field_help(Asked, "answer")),
                io.Float.Input(
                    "weight",
                    default=0.5,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    tooltip=f"{field_help(Asked, 'weight')} 0.5 keeps things beside a control of weight 1.",
                ),
                Overlay.Input("overlay", optional=True, tooltip=field_help(Asked, "overlay")),
                prompts_input(),
            ],
            outputs=[Question.Output(display_name="question", tooltip="For VQA Loss, beside the control's question.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, question: str | None = None) -> bool | str:
        return check_text(cls, question)

    @classmethod
    def execute(
        cls, question: str, answer: str, weight: float, overlay: Any = None, prompts: str = ""
    ) -> io.NodeOutput:
        from ..distillation import Question as Asked

        chosen = prompt_numbers(prompts)
        return io.NodeOutput((Asked(question.strip(), answer.strip(), weight, overlay, prompts=chosen, role="keep"),))


class VQALoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessVQALoss",
            display_name="VQA Loss",
            category=CATEGORY,
            description="The loss to train on: how unsure a critic is of the wanted answers, −log P(answer), weighted "
            "over all questions. Of a question with a contrast it is −log P(answer) + log P(contrast).",
            search_aliases=["vlm loss", "dual process loss"],
            inputs=[
                Critic.Input("critic", tooltip="Who is asked."),
                Loss.Input(
                    "loss", optional=True, tooltip="Another VQA Loss to add to: several critics train together."
                ),
                io.Autogrow.Input("questions", template=question_slots(), optional=True, tooltip="One or more."),
            ],
            outputs=[Loss.Output(display_name="loss", tooltip="For Distill LoRA, or for another VQA Loss.")],
        )

    @classmethod
    def execute(
        cls, critic: Any, questions: dict[str, Any] | None = None, loss: VqaTerms | None = None
    ) -> io.NodeOutput:
        before = loss or VqaTerms(())
        return io.NodeOutput(replace(before, terms=(*before.terms, (critic, tuple(connected(questions))))))


NODES = [VLMQuestion, KeepQuestion, VQALoss]
