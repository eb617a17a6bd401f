"""What to teach and how: questions and settings, frozen, validated, and written down as TOML or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from ..core.errors import RecipeError
from ..core.protocols import ATTENTION_AND_FEED_FORWARD, Overlay, Sampling
from .checks import check, check_integer, check_keys, check_number, is_list
from .penalties import PENALTIES, TARGETS
from .pictures import resolve_pictures, share_pictures, with_folder
from .question import Question
from .targets import MAX_SEED, Target, checked_targets, targets_of

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

BuildOverlay = Callable[[Any], Overlay]
SAMPLED, AVERAGED = "sampled", "averaged"  # what is done with paraphrases
OLD_PENALTIES = {"velocity_weight": "velocity", "range_weight": "range"}  # keys of version 0.1


@dataclass(frozen=True)
class Anchors:
    """How anchors are found: base pictures that are right already, where the penalty "anchors" holds the model."""

    pool: int = field(default=128, metadata={"help": "Base pictures to choose the anchors from."})
    threshold: float = field(
        default=0.5, metadata={"help": "Pictures are anchors if every P(answer) about them is above this …"}
    )
    least: int = field(default=16, metadata={"help": "… but at least this many, the best ones."})
    noise_level: str = field(
        default="judged", metadata={"help": "'judged': the noise level of the judged sample; 'random': any."}
    )

    def __post_init__(self) -> None:
        check_integer("anchors.pool", self.pool, 1)
        check_integer("anchors.least", self.least, 1)
        check_number("anchors.threshold", self.threshold, least=0, most=1)
        check(self.noise_level in ("judged", "random"), "anchors.noise_level", "'judged' or 'random'", self.noise_level)


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
    held_out: tuple[str, ...] = field(
        default=(), metadata={"help": "Prompts that are not trained on: the verdict looks at their pictures."}
    )
    train_steps: int = field(default=100, metadata={"help": "Optimiser steps."})
    learning_rate: float = field(default=5e-5, metadata={"help": "AdamW learning rate."})
    adam_beta2: float = field(
        default=0.999, metadata={"help": "AdamW's memory of squared gradients; 0.99 forgets the first steps sooner."}
    )
    lr_schedule: str = field(default="constant", metadata={"help": "'constant' or 'cosine' (decays to 0)."})
    rank: int = field(default=16, metadata={"help": "LoRA rank: a higher one holds more, in a larger file."})
    lora_alpha: float = field(default=40.0, metadata={"help": "LoRA alpha; the LoRA's scale is alpha / rank."})
    lora_targets: str = field(
        default=ATTENTION_AND_FEED_FORWARD,
        metadata={
            "help": "Which layers the LoRA changes: 'attention', 'attention + feed-forward', 'all linear' (those of "
            "the blocks), or a regular expression for whole layer names. ', first half' behind any of these: "
            "only in the first half of the blocks, which moves things rather than painting over them; ', last half': "
            "only in the last half, for less memory and time."
        },
    )
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
    penalties: Mapping[str, float] = field(
        default_factory=dict, metadata={"help": "Weights of penalties beside the VQA loss, by name."}
    )
    anchors: Anchors = field(default=Anchors(), metadata={"help": "How the penalty 'anchors' finds its pictures."})
    stop_probability: float | None = field(
        default=None, metadata={"help": "Stop early when every P(answer) is above this …"}
    )
    stop_steps: int = field(default=5, metadata={"help": "… for this many steps in a row."})
    wordings: str = field(
        default=SAMPLED,
        metadata={
            "help": "Of questions with paraphrases: 'sampled': each step asks one wording, drawn at random; "
            "'averaged': each step asks all, and takes the mean of their losses."
        },
    )
    targets: tuple[Target, ...] = field(
        default=(), metadata={"help": "Pictures that samples are to look like; the penalty 'targets' weighs them."}
    )
    velocity_weight: InitVar[float | None] = None  # as version 0.1 named `penalties`
    range_weight: InitVar[float | None] = None

    def __post_init__(self, velocity_weight: float | None, range_weight: float | None) -> None:
        questions = (self.questions,) if isinstance(self.questions, Question) else self.questions
        check(is_list(questions), "questions", "a list of Question objects", questions)
        questions = tuple(questions)
        check(bool(questions), "questions", "at least one Question", self.questions)
        for question in questions:
            check(isinstance(question, Question), "questions", "Question objects", question)
        check(is_list(self.prompts), "prompts", "a list of texts", self.prompts)
        object.__setattr__(self, "questions", questions)
        object.__setattr__(self, "prompts", tuple(self.prompts))
        check(is_list(self.held_out), "held_out", "a list of texts", self.held_out)
        object.__setattr__(self, "held_out", tuple(self.held_out))
        for prompt in (*self.prompts, *self.held_out):
            check(isinstance(prompt, str), "prompts", "texts", prompt)
        if shared := {*self.prompts} & {*self.held_out}:
            raise RecipeError(f"The prompts {sorted(shared)} are both trained on and held out. Leave them out of one.")
        check(isinstance(self.anchors, Anchors), "anchors", "an Anchors object or its table", self.anchors)
        for name in ("train_steps", "rank", "batch_size", "gradient_accumulation", "stop_steps"):
            check_integer(name, getattr(self, name), 1)
        for name in ("height", "width", "num_inference_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0, MAX_SEED)
        check(
            isinstance(self.lora_targets, str) and bool(self.lora_targets), "lora_targets", "a text", self.lora_targets
        )
        for name in ("learning_rate", "lora_alpha", "max_grad_norm"):
            check_number(name, getattr(self, name), above=0)
        check_number("adam_beta2", self.adam_beta2, above=0, most=0.9999)
        old = {"velocity_weight": velocity_weight, "range_weight": range_weight}
        object.__setattr__(self, "penalties", _penalties(self.penalties, old))
        if self.guidance is not None:
            check_number("guidance", self.guidance, least=0)
        if self.stop_probability is not None:
            check_number("stop_probability", self.stop_probability, above=0, most=1)
        check(self.lr_schedule in ("constant", "cosine"), "lr_schedule", "'constant' or 'cosine'", self.lr_schedule)
        check(self.timesteps in ("sampler", "renoise"), "timesteps", "'sampler' or 'renoise'", self.timesteps)
        check(self.wordings in (SAMPLED, AVERAGED), "wordings", f"'{SAMPLED}' or '{AVERAGED}'", self.wordings)
        object.__setattr__(self, "targets", checked_targets(self.targets))
        if bool(self.targets) != (TARGETS in self.penalties):
            raise RecipeError(
                "The recipe has targets, but they weigh nothing: give the penalty 'targets' a weight, such as 30."
                if self.targets
                else "The penalty 'targets' has a weight, but the recipe has no targets: name some, or leave it out."
            )

    @property
    def sampling(self) -> Sampling:
        """How pictures are sampled, in training and in every evaluation."""
        return Sampling(self.num_inference_steps, self.guidance, self.height, self.width)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.lr_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.train_steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain data without None values, ready for TOML and JSON; embedded pictures once, in a table `pictures`."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("questions", "targets")}
        data["prompts"] = list(self.prompts)
        data["held_out"] = list(self.held_out)
        data["penalties"] = dict(self.penalties)
        data["anchors"] = dict(vars(self.anchors))
        data["questions"] = [q.to_dict() for q in self.questions]
        if self.targets:
            data["targets"] = [target.to_dict() for target in self.targets]
        if self.wordings == SAMPLED:  # later than the first version, whose checkpoints are compared with this
            del data["wordings"]
        return share_pictures({name: value for name, value in data.items() if value is not None})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], build_overlay: BuildOverlay | None = None) -> Recipe:
        """A recipe from plain data. `build_overlay` (`dual_process.overlays.build`) makes overlays of their data.

        Raises:
            RecipeError: unknown keys, missing questions, a picture that is referred to but missing, or a value out of
                its range.
        """
        data = resolve_pictures(data)
        check_keys("recipe", {k: v for k, v in data.items() if k not in OLD_PENALTIES}, cls)
        rows = data.get("questions", ())
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise RecipeError(f"Expected questions as a list of tables, got {rows!r}.")
        questions = []
        for row in rows:
            if not isinstance(row, Mapping):
                raise RecipeError(f"Expected each question as a table with a text, got {row!r}.")
            check_keys("question", row, Question)
            if "text" not in row:
                raise RecipeError(f"Each question needs a text, this one has none: {dict(row)}.")
            question = Question(**row)
            if question.overlay is not None and build_overlay is not None:
                question = replace(question, overlay=build_overlay(question.overlay))
            questions.append(question)
        data = {**data, "questions": tuple(questions)}
        if "targets" in data:
            data["targets"] = targets_of(data["targets"])
        if "anchors" in data:
            if not isinstance(data["anchors"], Mapping):
                raise RecipeError(f"Expected anchors as a table of settings, got {data['anchors']!r}.")
            check_keys("anchors", data["anchors"], Anchors)
            data["anchors"] = Anchors(**data["anchors"])
        return cls(**data)

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
        """Reads a recipe from a TOML or JSON file, whose references are files beside it; see `from_dict`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise RecipeError(f"Could not read the recipe {path}: {error}.") from error
        except ValueError as error:
            raise RecipeError(f"{path} is neither valid TOML nor JSON: {error}.") from error
        if not isinstance(data, Mapping):
            raise RecipeError(f"Expected {path} to hold a table of settings, got {type(data).__name__}.")
        return cls.from_dict(with_folder(data, Path(path).parent), build_overlay)


def _penalties(weights: Any, old: Mapping[str, float | None]) -> dict[str, float]:
    """The weights above 0, once they are known to be sound; `old` holds those under their names of version 0.1."""
    check(isinstance(weights, Mapping), "penalties", "a table of weights by name", weights)
    check({*weights} <= {*PENALTIES}, "penalties", f"weights of {list(PENALTIES)}", dict(weights))
    for name, weight in weights.items():
        check_number(f"the penalty {name}", weight, least=0)
    for key, weight in old.items():
        if weight is not None:
            check_number(key, weight, least=0)
            weights = {**weights, OLD_PENALTIES[key]: weight}
    return {name: float(weights[name]) for name in PENALTIES if weights.get(name)}
