"""The rounds behind Pick Favourites: what is trained, what is kept on disk, what the node shows.

A session is named by what its first round depends on. It lies in `output/dual_process/favourites/<name>`: the rounds in
one file, each round's pictures, and what a browser draws.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from server import PromptServer
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .lora_model import COMFYUI, TrainedLora, in_diffusers_names
from .memory import arranging, fit
from .plan import FROM_PRESET, UNTOUCHED
from .progress import Progress
from .run_files import favourites_folder
from .saving import workflow_metadata
from .teaching import Sources, kept_by_the_preset, notes_on, prepare, unknown_words
from .training import critics_and_questions, keep, stop, written_down
from .view import PICTURE_SIZE, STATE

ROUNDS = "rounds.safetensors"
EVENT = "dual_process.favourites"


class Session:
    """A person's rounds with one MODEL.

    Args:
        sources: what is wired into the node; its `loss` is the comparison.
        widgets: of the node.
        hidden: of the node.

    Raises:
        DualProcessError: something does not fit; the message says what to change.
    """

    def __init__(self, sources: Sources, preset: str, widgets: dict[str, Any], hidden: Any) -> None:
        from ..distillation import Recipe
        from ..distillation.favourites import PACE, Favourites

        self.hidden = hidden
        known = {"train_steps": widgets["round_steps"], **{name: widgets[name] for name in ("learning_rate", "rank")}}
        self.plan, self.generator = prepare(sources, preset, {**UNTOUCHED, **known})
        self.critics, questions = critics_and_questions(sources.loss)
        kept = kept_by_the_preset(sources, self.plan, questions, FROM_PRESET)
        self.recipe = Recipe(
            questions=(*questions, *kept),
            prompts=sources.prompts.texts or (),
            held_out=sources.prompts.held_out_texts if sources.prompts.texts is not None else (),
            seed=widgets["seed"],
            **self.plan.recipe,
        )
        if not widgets["learning_rate"]:
            self.recipe = replace(self.recipe, learning_rate=PACE * self.recipe.learning_rate)
        self.notes = [*self.plan.notes, *notes_on(sources), *unknown_words(self.plan, self.critics, self.recipe)]
        self.memory = widgets["memory"]
        self.name = _name(self.generator, self.recipe, widgets["candidates"], self.plan)
        self.folder = favourites_folder() / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ROUNDS
        if path.is_file():
            self.favourites = Favourites.load(path, self.generator, self.critics, recipe=self.recipe)
        else:
            self.favourites = Favourites(self.generator, self.critics, self.recipe, widgets["candidates"])

    def go_on(self, picks: Sequence[Any]) -> Tensor:
        """Ends a round with each of the picks that have not ended one yet; the pictures to mark next.

        Raises:
            InterruptProcessingException: the user cancelled; the rounds before stay, the LoRA so far is written down.
        """
        favourites = self.favourites
        to_come = favourites.keep(picks)
        for own in to_come:
            self._shown()
            self._say("getting ready")
            favourites.pick(own, self._train)
            favourites.save(self.folder / ROUNDS)
        shown = self._shown()
        if not to_come:  # else the last round has been written
            favourites.save(self.folder / ROUNDS)
        self._write()
        return shown

    def lora(self) -> TrainedLora | None:
        """That of the last round, with its strength 1 as it was trained; None before the first is over."""
        if not self.favourites.rounds:
            return None
        metadata = {**self.favourites.rounds[-1].metadata, **workflow_metadata(self.hidden)}
        return TrainedLora(self.generator.lora_state_dict(COMFYUI), in_diffusers_names(self.generator), metadata)

    def liked(self) -> list[Tensor]:
        """The favourites of all rounds, [3, H, W] each."""
        return [past.pictures[n] for past in self.favourites.rounds for n in past.picks.liked]

    def state(self) -> dict[str, Any]:
        """What a browser draws."""
        picks = [*(past.picks.line for past in self.favourites.rounds), None]  # the last round is still to be marked
        words = self.generator.prompts

        def prompts(number: int) -> list[str]:
            indices = self.favourites.prompt_indices(number)
            return [words[i] if words is not None else f"prompt {i + 1}" for i in indices]

        rounds = [{"picks": line, "prompts": prompts(number)} for number, line in enumerate(picks)]
        return {"session": self.name, "made": time.time_ns() // 10**6, "rounds": rounds, "notes": self.notes}

    def _shown(self) -> Tensor:
        """This round's pictures, which are written down, too."""
        number = len(self.favourites.rounds) + 1
        pictures = self.favourites.candidates(lambda done, total: self._say(f"picture {done} of {total}"))
        for place, picture in enumerate(pictures, start=1):
            image = to_pil_image((picture * 255).round().to(torch.uint8))
            image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            image.save(self.folder / f"round_{number}_{place}.jpg", quality=90)
        return pictures

    def _train(self, generator: Any, critics: Any, recipe: Any, **options: Any) -> Any:
        from ..distillation.fallback import distill_by_plan

        progress = Progress(recipe, self.hidden.unique_id, has_view=True)

        def on_step(report: Any, preview: Any) -> None:
            progress(report, preview)
            self._say(f"step {report.step} of {report.train_steps}")

        def on_anchor(done: int, total: int) -> None:
            progress.on_anchor(done, total)
            self._say(f"looking for anchors, picture {done} of {total}")

        memory = fit(generator, critics, recipe, self.memory, True)
        with ExitStack() as stack, written_down(keep):
            result = distill_by_plan(
                *(generator, critics, recipe, memory.expected, memory.sizes),
                arranging(generator, critics, stack),
                on_step=on_step,
                on_anchor=on_anchor,
                should_stop=progress.is_cancelled,
                **options,
            )
        if result.stop_reason == "interrupted" or progress.is_cancelled():
            stop(result)
        return result

    def _say(self, message: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            told = f"Round {len(self.favourites.rounds) + 1}: {message}"
            server.send_sync(EVENT, {"node": self.hidden.unique_id, "message": told})

    def _write(self) -> None:
        (self.folder / STATE).write_text(json.dumps(self.state()), encoding="utf-8")


def _name(generator: Any, recipe: Any, candidates: int, plan: Any) -> str:
    """By what the candidates of the first round, and the LoRA's shape, depend on."""
    said = recipe.to_dict()
    of = ("prompts", "held_out", "seed", "rank", "lora_alpha", "lora_targets")
    parts = [generator.info.weights_sha256, candidates, plan.height, plan.width, plan.steps, plan.cfg, plan.scheduler]
    text = json.dumps([*parts, recipe.questions[0].text, {name: said[name] for name in of}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
