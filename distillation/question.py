"""What a critic is asked, and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..core.errors import RecipeError
from ..core.picture import Picture
from ..core.protocols import Overlay, RangedOverlay
from .checks import check, check_number, is_list

CONTROL, KEEP = "control", "keep"  # roles of a question
AS_BEFORE = "as before"  # as an answer: the one that the critic gives about the base model's picture
PROMPT = "{prompt}"  # in a question's text: the words of the sample's own prompt


@dataclass(frozen=True)
class Question:
    """A question for a critic and the answer that is wanted (paper, section 3.1)."""

    text: str = field(
        metadata={"help": "The question, as the critic reads it; {prompt} stands for the words of the prompt."}
    )
    answer: str = field(
        default="Yes",
        metadata={"help": "The answer that is wanted; 'as before': the critic's own about the base model's picture."},
    )
    weight: float = field(default=1.0, metadata={"help": "Weight of this question in the loss, above 0."})
    overlay: Overlay | Any = field(
        default=None, metadata={"help": "Visual prompt drawn on the image before this question is asked."}
    )
    critic: str = field(default="default", metadata={"help": "Name of the critic that is asked."})
    prompts: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Indices of the prompts that this question is for; none = all."}
    )
    contrast: str | None = field(
        default=None, metadata={"help": "An answer to push away: the loss is then −(log P(answer) − log P(contrast))."}
    )
    role: str = field(
        default=CONTROL, metadata={"help": "'control': what is to be learnt; 'keep': what is to stay, shown apart."}
    )
    choices: tuple[str, ...] = field(
        default=("Yes", "No"), metadata={"help": "The answers out of which 'as before' takes the likeliest."}
    )
    paraphrases: tuple[str, ...] = field(
        default=(), metadata={"help": "Further wordings of the question, with the same wanted answer."}
    )
    references: tuple[Picture, ...] = field(
        default=(),
        metadata={"help": "Pictures beside the judged one, which the question calls picture A, picture B and so on."},
    )
    grades: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "A scale of answers, such as 1 to 5, one end of which is the wanted answer. P(answer) is then the "
            "expected grade, from 0 at the other end to 1."
        },
    )

    def __post_init__(self) -> None:
        check(isinstance(self.text, str), "a question's text", "some text", self.text)
        check(isinstance(self.answer, str), "a question's answer", "text", self.answer)
        if not self.text.strip():
            raise RecipeError("The question is empty: type one.")
        if not self.answer.strip():
            raise RecipeError(f"The question {self.text!r} has no answer: type the one that is wanted, such as Yes.")
        check_number("a question's weight", self.weight, above=0)
        check(isinstance(self.critic, str) and bool(self.critic), "a question's critic", "a name", self.critic)
        if self.contrast is not None:
            other = isinstance(self.contrast, str) and self.contrast.strip() not in ("", str(self.answer).strip())
            check(other, "a question's contrast", "text other than the answer", self.contrast)
        if self.prompts is not None:
            check(is_list(self.prompts), "a question's prompts", "a list of indices", self.prompts)
            prompts = tuple(self.prompts)
            good = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompts)
            check(bool(prompts) and good, "a question's prompts", "indices from 0", self.prompts)
            object.__setattr__(self, "prompts", prompts)
        check(self.role in (CONTROL, KEEP), "a question's role", f"'{CONTROL}' or '{KEEP}'", self.role)
        if self.answer == AS_BEFORE:
            check(self.contrast is None, f"the contrast of a question answered '{AS_BEFORE}'", "none", self.contrast)
        choices = tuple(self.choices) if is_list(self.choices) else ()
        good = len({*choices}) == len(choices) >= 2 and all(isinstance(c, str) and c.strip() for c in choices)
        check(good, "a question's choices", "at least two different texts", self.choices)
        object.__setattr__(self, "choices", choices)
        check(is_list(self.paraphrases), "a question's paraphrases", "a list of texts", self.paraphrases)
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases))
        for text in self.paraphrases:
            check(isinstance(text, str) and bool(text.strip()), "a question's paraphrases", "texts, none empty", text)
        if len({*self.texts}) < len(self.texts):
            raise RecipeError(f"Two wordings of the question {self.text!r} are the same. Leave one out.")
        check(is_list(self.references), "a question's references", "a list of pictures", type(self.references).__name__)
        pictures = [p if isinstance(p, Picture) else Picture.from_dict(p, RecipeError) for p in self.references]
        object.__setattr__(self, "references", tuple(pictures))
        self._check_grades()

    def _check_grades(self) -> None:
        grades = tuple(self.grades) if is_list(self.grades) else ()
        good = len({*grades}) == len(grades) != 1 and all(isinstance(g, str) and g.strip() for g in grades)
        check(good and is_list(self.grades), "a question's grades", "at least two different texts", self.grades)
        object.__setattr__(self, "grades", grades)
        if grades:
            ends = (grades[0], grades[-1])
            check(self.answer in ends, "the answer of a graded question", f"{ends[0]!r} or {ends[1]!r}", self.answer)
            check(self.contrast is None, "the contrast of a graded question", "none", self.contrast)

    @property
    def texts(self) -> tuple[str, ...]:
        """All wordings."""
        return (self.text, *self.paraphrases)

    def worded(self, text: str) -> Question:
        """This question in one of its wordings alone."""
        return replace(self, text=text, paraphrases=())

    def at(self, slider: float | None) -> Question:
        """This question at a value of the slider, if its overlay follows one."""
        if slider is None or not isinstance(self.overlay, RangedOverlay):
            return self
        return replace(self, overlay=self.overlay.at(slider))

    @property
    def is_as_before(self) -> bool:
        return self.answer == AS_BEFORE

    @property
    def follows_slider(self) -> bool:
        return isinstance(self.overlay, RangedOverlay)

    @property
    def scale(self) -> tuple[str, ...]:
        """The answers that count, the wanted one last; without grades it alone."""
        grades = self.grades or (self.answer,)
        return grades if grades[-1] == self.answer else grades[::-1]

    def is_for(self, prompt_index: int) -> bool:
        return self.prompts is None or prompt_index in self.prompts

    def to_dict(self) -> dict[str, Any]:
        """Plain data without None values."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        if isinstance(self.overlay, Overlay):
            data["overlay"] = self.overlay.to_dict()
        if self.prompts is not None:
            data["prompts"] = list(self.prompts)
        data["choices"] = list(self.choices)
        # Later than the first version, whose files lack them.
        data["paraphrases"] = list(self.paraphrases) or None
        data["references"] = [picture.to_dict() for picture in self.references] or None
        data["grades"] = list(self.grades) or None
        return {name: value for name, value in data.items() if value is not None}
