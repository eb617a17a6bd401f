"""What to teach and how: questions and settings, frozen, validated, and written down as TOML or JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from ..core.errors import RecipeError
from ..core.protocols import Overlay
from .pictures import resolve_pictures, share_pictures

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

MAX_SEED = 2**64 - 1  # the largest that torch, and ComfyUI's seed widget, take
BuildOverlay = Callable[[Any], Overlay]


@dataclass(frozen=True)
class Question:
    """A question for a critic and the answer that is wanted (paper, section 3.1)."""

    text: str = field(metadata={"help": "The question, as the critic reads it."})
    answer: str = field(default="Yes", metadata={"help": "The answer that is wanted."})
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

    def __post_init__(self) -> None:
        _check(isinstance(self.text, str) and bool(self.text.strip()), "a question's text", "some text", self.text)
        _check(isinstance(self.answer, str) and bool(self.answer.strip()), "a question's answer", "text", self.answer)
        _check_number("a question's weight", self.weight, above=0)
        _check(isinstance(self.critic, str) and bool(self.critic), "a question's critic", "a name", self.critic)
        if self.contrast is not None:
            other = isinstance(self.contrast, str) and self.contrast.strip() not in ("", str(self.answer).strip())
            _check(other, "a question's contrast", "text other than the answer", self.contrast)
        if self.prompts is not None:
            _check(_is_list(self.prompts), "a question's prompts", "a list of indices", self.prompts)
            prompts = tuple(self.prompts)
            good = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompts)
            _check(bool(prompts) and good, "a question's prompts", "indices from 0", self.prompts)
            object.__setattr__(self, "prompts", prompts)

    def is_for(self, prompt_index: int) -> bool:
        return self.prompts is None or prompt_index in self.prompts


@dataclass(frozen=True)
class Recipe:
    """Everything that a distillation depends on, besides the generator and the critics.

    The defaults follow the paper and its reference implementation, whose "weight 5" is `lora_alpha` 40 at rank 16.

    Raises:
        RecipeError: a value is out of its range; the message names it.
    """

    questions: tuple[Question, ...] = field(metadata={"help": "What the critics are asked."})
    prompts: tuple[str, ...] = field(
        default=(), metadata={"help": "Training prompts: the generator's first ones. Empty = all that it holds."}
    )
    train_steps: int = field(default=100, metadata={"help": "Optimiser steps."})
    learning_rate: float = field(default=5e-5, metadata={"help": "AdamW learning rate."})
    lr_schedule: str = field(default="constant", metadata={"help": "'constant' or 'cosine' (decays to 0)."})
    rank: int = field(default=16, metadata={"help": "LoRA rank: a higher one holds more, in a larger file."})
    lora_alpha: float = field(default=40.0, metadata={"help": "LoRA alpha; the LoRA's scale is alpha / rank."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    batch_size: int = field(default=1, metadata={"help": "Images per backward pass."})
    gradient_accumulation: int = field(default=1, metadata={"help": "Backward passes per optimiser step."})
    seed: int = field(default=0, metadata={"help": "Every random draw comes from (seed, step, sample index)."})
    height: int | None = field(default=None, metadata={"help": "Image height in pixels; none = the generator's."})
    width: int | None = field(default=None, metadata={"help": "Image width in pixels; none = the generator's."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Sampler steps of which a random one is trained; none = the generator's."}
    )
    guidance: float | None = field(default=None, metadata={"help": "Guidance strength; none = the generator's."})
    timesteps: str = field(
        default="sampler",
        metadata={"help": "'sampler': a random sampler step; 'renoise': a full sample, noised to a random time."},
    )
    velocity_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared distance of the prediction to the base model's."}
    )
    range_weight: float = field(default=0.0, metadata={"help": "Weight of the penalty on pixels outside [0, 1]."})
    stop_probability: float | None = field(
        default=None, metadata={"help": "Stop early when every P(answer) is above this …"}
    )
    stop_steps: int = field(default=5, metadata={"help": "… for this many steps in a row."})

    def __post_init__(self) -> None:
        questions = (self.questions,) if isinstance(self.questions, Question) else self.questions
        _check(_is_list(questions), "questions", "a list of Question objects", questions)
        questions = tuple(questions)
        _check(bool(questions), "questions", "at least one Question", self.questions)
        for question in questions:
            _check(isinstance(question, Question), "questions", "Question objects", question)
        _check(_is_list(self.prompts), "prompts", "a list of texts", self.prompts)
        object.__setattr__(self, "questions", questions)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for prompt in self.prompts:
            _check(isinstance(prompt, str), "prompts", "texts", prompt)
        for name in ("train_steps", "rank", "batch_size", "gradient_accumulation", "stop_steps"):
            _check_integer(name, getattr(self, name), 1)
        for name in ("height", "width", "num_inference_steps"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        _check_integer("seed", self.seed, 0, MAX_SEED)
        for name in ("learning_rate", "lora_alpha", "max_grad_norm"):
            _check_number(name, getattr(self, name), above=0)
        for name in ("velocity_weight", "range_weight"):
            _check_number(name, getattr(self, name), least=0)
        if self.guidance is not None:
            _check_number("guidance", self.guidance, least=0)
        if self.stop_probability is not None:
            _check_number("stop_probability", self.stop_probability, above=0, most=1)
        _check(self.lr_schedule in ("constant", "cosine"), "lr_schedule", "'constant' or 'cosine'", self.lr_schedule)
        _check(self.timesteps in ("sampler", "renoise"), "timesteps", "'sampler' or 'renoise'", self.timesteps)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.train_steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain data without None values, ready for TOML and JSON; embedded pictures once, in a table `pictures`."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "questions"}
        data["prompts"] = list(self.prompts)
        data["questions"] = [_question_to_dict(q) for q in self.questions]
        return share_pictures({name: value for name, value in data.items() if value is not None})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], build_overlay: BuildOverlay | None = None) -> Recipe:
        """A recipe from plain data. `build_overlay` (`dual_process.overlays.build`) makes overlays of their data.

        Raises:
            RecipeError: unknown keys, missing questions, a picture that is referred to but missing, or a value out of
                its range.
        """
        data = resolve_pictures(data)
        _check_keys("recipe", data, cls)
        rows = data.get("questions", ())
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise RecipeError(f"Expected questions as a list of tables, got {rows!r}.")
        questions = []
        for row in rows:
            if not isinstance(row, Mapping):
                raise RecipeError(f"Expected each question as a table with a text, got {row!r}.")
            _check_keys("question", row, Question)
            if "text" not in row:
                raise RecipeError(f"Each question needs a text, this one has none: {dict(row)}.")
            question = Question(**row)
            if question.overlay is not None and build_overlay is not None:
                question = replace(question, overlay=build_overlay(question.overlay))
            questions.append(question)
        return cls(**{**data, "questions": tuple(questions)})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Writes the recipe as TOML, or as JSON if `path` ends so."""
        text = self.to_json() if Path(path).suffix == ".json" else self.to_toml()
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, build_overlay: BuildOverlay | None = None) -> Recipe:
        """Reads a recipe from a TOML or JSON file; see `from_dict`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise RecipeError(f"Could not read the recipe {path}: {error}.") from error
        except ValueError as error:
            raise RecipeError(f"{path} is neither valid TOML nor JSON: {error}.") from error
        if not isinstance(data, Mapping):
            raise RecipeError(f"Expected {path} to hold a table of settings, got {type(data).__name__}.")
        return cls.from_dict(data, build_overlay)


def _question_to_dict(question: Question) -> dict[str, Any]:
    data = {f.name: getattr(question, f.name) for f in fields(question)}
    if isinstance(question.overlay, Overlay):
        data["overlay"] = question.overlay.to_dict()
    if question.prompts is not None:
        data["prompts"] = list(question.prompts)
    return {name: value for name, value in data.items() if value is not None}


def _check_keys(what: str, data: Mapping[str, Any], owner: type) -> None:
    known = [f.name for f in fields(owner)]
    if unknown := sorted(set(data) - set(known)):
        raise RecipeError(f"Unknown {what} keys {unknown}. Known ones are {known}: correct or remove them.")


def _check(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise RecipeError(f"Expected {name} to be {expected}, got {value!r}.")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_integer(name: str, value: object, least: int, most: float = math.inf) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    _check(good, name, f"a whole number {bounds}", value)


def _check_number(
    name: str, value: object, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if good and above is not None:
        good = value > above  # type: ignore[operator]
    if good and least is not None:
        good = value >= least  # type: ignore[operator]
    if good and most is not None:
        good = value <= most  # type: ignore[operator]
    bounds = [f"above {above}"] * (above is not None) + [f"at least {least}"] * (least is not None)
    bounds += [f"at most {most}"] * (most is not None)
    _check(good, name, " and ".join(["a number", *bounds]), value)
