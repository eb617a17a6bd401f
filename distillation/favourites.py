"""More of these: rounds of pictures that a person marks, and after each a training on towards those that are liked.

The marked pictures become references of graded questions: how alike is a new picture to a favourite, and how unlike one
that was rejected? Prompts and controls that are hard to put into words need none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import LoraFileError, RecipeError
from ..core.picture import Picture
from ..core.protocols import Critic, Generator
from ..core.tensor_file import read_tensors, write_tensors
from .loop import distill
from .question import Question
from .recipe import Recipe
from .result import DistillationResult

LIKENESS = Question(
    "How alike are the first picture and picture A, from 1 (not at all) to 5 (the same)? Answer with a number.",
    "5",
    grades=("1", "2", "3", "4", "5"),
)
Train = Callable[..., DistillationResult]  # `distill`, or one with its signature
PACE = 0.5  # share of a whole training's learning rate: rounds add up, and comparisons are easily won by painting
SHOWN, REFERENCES = 8, 6  # candidates a round; marked pictures that a round learns from, the newest ones
CANDIDATE_STREAM = 5  # sets these draws apart from those of training
KEY, VERSION = "dual_process.favourites", "1"
LORA, PICTURES = "lora.", "pictures"  # of a round's tensors in the file


@dataclass(frozen=True)
class Picks:
    """What a person has marked of a round's candidates, by their numbers from 0."""

    liked: tuple[int, ...]
    rejected: tuple[int, ...] = ()

    @classmethod
    def parse(cls, line: str) -> Picks:
        """The marks of a line such as "1 4 -6": numbers from 1, those of rejected pictures with a minus.

        Raises:
            RecipeError: something else stands in it.
        """
        try:
            numbers = [int(word) for word in line.replace(",", " ").split()]
        except ValueError:
            numbers = [0]
        if 0 in numbers:
            raise RecipeError(
                f"Expected the numbers of pictures from 1, with a minus where one is rejected, such as '1 4 -6', got "
                f"{line!r}."
            )
        return cls(tuple(sorted({n - 1 for n in numbers if n > 0})), tuple(sorted({-n - 1 for n in numbers if n < 0})))

    @property
    def line(self) -> str:
        """As `parse` reads it."""
        return " ".join([*(str(n + 1) for n in self.liked), *(str(-n - 1) for n in self.rejected)])

    def check(self, count: int) -> None:
        """Raises RecipeError if nothing of `count` pictures is marked, all have one mark, or one has both."""
        marked = (*self.liked, *self.rejected)
        if not marked:
            raise RecipeError("No picture is marked: mark at least one as a favourite, or reject one.")
        if wrong := sorted(n for n in marked if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < count):
            raise RecipeError(f"Expected marks of {count} pictures, got one of {_named(wrong)}.")
        if both := sorted({*self.liked} & {*self.rejected}):
            raise RecipeError(f"Marked as favourite and as rejected at once: {_named(both)}. Take one mark away.")
        if len({*self.liked}) == count or len({*self.rejected}) == count:
            raise RecipeError("Every picture has the same mark, so that none says what the others lack: mark fewer.")


def _named(numbers: Sequence[int]) -> str:
    """Counted as a person counts them."""
    return ", ".join(f"picture {n + 1}" if isinstance(n, int) else repr(n) for n in numbers)


def _in_8_bits(pictures: Tensor) -> Tensor:
    return (pictures.float().clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Round:
    """A round that is over: its candidates [N, 3, H, W] in [0, 1], what was marked, and the LoRA that came of it."""

    pictures: Tensor
    picks: Picks
    lora: Mapping[str, Tensor]  # by the names of `generator.lora_parameters()`
    metadata: Mapping[str, str]  # how it was made, for a saved file

    def marked(self) -> list[tuple[Picture, bool]]:
        """The marked pictures, and whether each is a favourite."""
        numbers = [(n, True) for n in self.picks.liked] + [(n, False) for n in self.picks.rejected]
        return [(Picture.from_tensor(self.pictures[n]), liked) for n, liked in numbers]


class Favourites:
    """A person's rounds with one generator; each goes on from the LoRA of the one before.

    Args:
        generator: holds the recipe's prompts, and behind them those that candidates are made of (if there are none,
            the recipe's).
        critic: one, or several by name; "default" compares the pictures.
        recipe: how each round trains. Its first question, such as `LIKENESS`, is graded and compares the judged picture
            with picture A: it is asked beside each marked picture. The others are asked as they are.
        shown: candidates a round.

    Attributes:
        rounds: those that are over.

    Raises:
        RecipeError: the recipe's first question does not compare, or less than two candidates a round.
    """

    def __init__(
        self,
        generator: Generator,
        critic: Critic | Mapping[str, Critic],
        recipe: Recipe,
        shown: int = SHOWN,
    ) -> None:
        if shown < 2:
            raise RecipeError(f"Expected at least 2 candidates a round, got {shown}.")
        compares = recipe.questions[0]
        if not compares.grades or compares.references:
            raise RecipeError(
                "Expected a recipe whose first question is graded and has no references yet, such as LIKENESS, got "
                f"{compares.text!r}."
            )
        self.generator, self.critic, self.recipe, self.shown = generator, critic, recipe, shown
        self.rounds: list[Round] = []
        self._candidates: Tensor | None = None

    def candidates(self, on_picture: Callable[[int, int], None] | None = None) -> Tensor:
        """This round's pictures, [shown, 3, H, W] in [0, 1] on the CPU: held-out prompts in turn, new noises.

        Args:
            on_picture: called after each with how many are made, and of how many.
        """
        if self._candidates is None:
            self._take_up()
            scale, made = 1.0 if self.rounds else 0.0, []
            for index, seed in zip(self.prompt_indices(len(self.rounds)), self._seeds(), strict=True):
                made.append(self.generator.sample([index], [seed], lora_scale=scale, sampling=self.recipe.sampling))
                if on_picture is not None:
                    on_picture(len(made), self.shown)
            self._candidates = _in_8_bits(torch.cat(made)).cpu().float() / 255  # as they are kept
        return self._candidates

    def prompt_indices(self, number: int) -> list[int]:
        """Of the generator's prompts those that round `number`, counted from 0, shows."""
        first = len(self.recipe.prompts)
        of = range(first, self.generator.num_prompts) or range(self.generator.num_prompts)
        return [of[(number * self.shown + place) % len(of)] for place in range(self.shown)]

    def _seeds(self) -> list[int]:
        random = np.random.default_rng([self.recipe.seed, len(self.rounds), 0, CANDIDATE_STREAM])
        return [int(seed) for seed in random.integers(2**63, size=self.shown)]

    def _take_up(self) -> None:
        """Gives the generator the LoRA of the last round."""
        recipe = self.recipe
        self.generator.add_lora(recipe.rank, recipe.lora_alpha, recipe.seed, recipe.lora_targets)
        if self.rounds:
            with torch.no_grad():
                for name, parameter in self.generator.lora_parameters().items():
                    parameter.copy_(self.rounds[-1].lora[name])

    def questions(self, picks: Picks) -> tuple[Question, ...]:
        """What a round asks that ends with these picks: about each of the newest marked pictures, and the recipe's."""
        this = Round(self.candidates(), picks, {}, {})
        marked = [pair for past in (*self.rounds, this) for pair in past.marked()][-REFERENCES:]
        compares, *others = self.recipe.questions
        unlike, alike = compares.scale[0], compares.scale[-1]
        asked = (
            replace(
                compares,
                answer=alike if liked else unlike,
                weight=compares.weight / len(marked),
                references=(picture,),
            )
            for picture, liked in marked
        )
        return (*asked, *others)

    def pick(self, picks: Picks, train: Train = distill) -> DistillationResult:
        """Ends the round: trains on from the LoRA so far towards what is liked, and away from what is rejected.

        Args:
            train: `distill`, or for example `functools.partial(distill, on_step=…)`.

        Raises:
            RecipeError: see `Picks.check`. Whatever is raised, the rounds stay as they are.
        """
        picks.check(self.shown)
        pictures, questions = self.candidates(), self.questions(picks)
        plan = replace(self.recipe, questions=questions, seed=self.recipe.seed + len(self.rounds))
        initial = dict(self.rounds[-1].lora) if self.rounds else None
        result = train(self.generator, self.critic, plan, initial_lora=initial)
        lora = {name: p.detach().to("cpu", copy=True) for name, p in self.generator.lora_parameters().items()}
        self.rounds.append(
            Round(pictures, picks, lora, result.metadata(f"Favourites of {len(self.rounds) + 1} rounds"))
        )
        self._candidates = None
        return result

    def undo(self, rounds: int = 1) -> None:
        """Takes back the last rounds: the candidates of the first of them are shown again.

        Raises:
            RecipeError: there are not so many.
        """
        if not 1 <= rounds <= len(self.rounds):
            raise RecipeError(f"Expected 1 to {len(self.rounds)} rounds to undo, got {rounds}.")
        self._candidates = self.rounds[-rounds].pictures
        del self.rounds[-rounds:]
        self._take_up()

    def keep(self, picks: Sequence[Picks]) -> Sequence[Picks]:
        """Undoes the rounds from the first one that was marked otherwise; those of `picks` that are still to come."""
        same = 0
        for past, own in zip(self.rounds, picks, strict=False):
            if past.picks != own:
                break
            same += 1
        if same < len(self.rounds):
            self.undo(len(self.rounds) - same)
        return picks[same:]

    def save(self, path: str | Path) -> Path:
        """Writes all rounds with their pictures; atomic. Raises LoraFileError if the file cannot be written."""
        tensors = {}
        for number, past in enumerate(self.rounds):
            tensors[f"{number}.{PICTURES}"] = _in_8_bits(past.pictures)
            tensors |= {f"{number}.{LORA}{name}": tensor for name, tensor in past.lora.items()}
        said = {
            "version": VERSION,
            "recipe": self.recipe.to_dict(),
            "shown": self.shown,
            "base_model": self.generator.info.weights_sha256,
            "picks": [asdict(past.picks) for past in self.rounds],
            "metadata": [dict(past.metadata) for past in self.rounds],
        }
        return write_tensors(path, tensors, {KEY: json.dumps(said)})

    @classmethod
    def load(
        cls,
        path: str | Path,
        generator: Generator,
        critic: Critic | Mapping[str, Critic],
        build_overlay: Any = None,
        recipe: Recipe | None = None,
    ) -> Favourites:
        """Takes up the rounds of a file.

        Args:
            build_overlay: see `Recipe.from_dict`.
            recipe: how the next rounds train, with the LoRA of those that are over; the file's by default.

        Raises:
            LoraFileError: no such file, or one of another base model or version.
        """
        tensors, metadata = read_tensors(path)
        if KEY not in metadata:
            raise LoraFileError(
                f"{path} holds no rounds of favourites. Give the file that `Favourites.save` has written."
            )
        said = json.loads(metadata[KEY])
        if said["version"] != VERSION:
            raise LoraFileError(f"{path} is of another version of the pack ({said['version']}, here {VERSION}).")
        if said["base_model"] != generator.info.weights_sha256:
            raise LoraFileError("These rounds were made on another base model. Go on with the model they started from.")
        made = cls(generator, critic, recipe or Recipe.from_dict(said["recipe"], build_overlay), said["shown"])
        for number, (picks, metadata) in enumerate(zip(said["picks"], said["metadata"], strict=True)):
            own = f"{number}.{LORA}"
            made.rounds.append(
                Round(
                    tensors[f"{number}.{PICTURES}"].float() / 255,
                    Picks(tuple(picks["liked"]), tuple(picks["rejected"])),
                    {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)},
                    metadata,
                )
            )
        made._take_up()
        return made
