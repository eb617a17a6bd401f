"""One run of Distill LoRA: from what is wired into the node to what comes out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ..core.devices import peak_memory
from .lora_model import TrainedLora
from .memory import Fit, arranging, fit
from .plan import FROM_PRESET, Plan, make_plan
from .progress import Progress
from .run_files import Checkpoints, write_report
from .saving import workflow_metadata
from .training import critics_and_questions, keep, with_targets, written_down
from .types import PromptSet, VqaTerms, to_comfy
from .view import View, view_key

LAST, BEST = "last", "best"
NO_LORA = "(none: a fresh one)"
SHOWN = 4  # held-out pictures in the node
log = logging.getLogger(__name__)

_unfinished: dict[str | None, int] = {}


def runs_left_unfinished(node_id: str | None) -> int:
    """How many runs of a node ended before they were done."""
    return _unfinished.get(node_id, 0)


@dataclass(frozen=True)
class Sources:
    """What is wired into the node."""

    model: Any
    vae: Any
    prompts: PromptSet
    loss: VqaTerms
    latent: dict[str, Any] | None
    negative: Any
    sigmas: Tensor | None
    resume: Any
    referee: Any
    gradient_vae: Any = None


@dataclass(frozen=True)
class Taught:
    """What comes out of the node."""

    lora: TrainedLora
    comparison: Tensor
    before: Tensor
    after: Tensor
    verdict: str
    losses: dict[str, list[float]]


def teach(sources: Sources, preset: str, widgets: dict[str, Any], hidden: Any) -> Taught:
    """Trains, shows, judges, and writes down what the run leaves.

    Raises:
        DualProcessError: something does not fit; the message says what to change.
        InterruptProcessingException: the user cancelled; the LoRA so far lies below models/loras.
    """
    try:
        plan, generator = prepare(sources, preset, widgets)
        critics, recipe = make_recipe(sources, plan, widgets)
        initial = existing_lora(generator, widgets["existing_lora"], recipe)
        memory = fit(generator, critics, recipe, widgets["memory"], widgets["gradient_checkpointing"])
    except Exception as error:  # on the node's face, too
        View(view_key(hidden), hidden.unique_id, None, (), ()).finish("failed", str(error))
        raise
    with ExitStack() as stack:
        arrange = arranging(generator, critics, stack)
        arrange(memory.expected.plan)
        return Teaching(sources, plan, generator, critics, recipe, memory, arrange, hidden).run(widgets, initial)


def prepare(sources: Sources, preset: str, widgets: dict[str, Any]) -> tuple[Plan, Any]:
    """The plan, and the generator that it is for."""
    from ..distillation.checkpoint import Checkpoint
    from ..generators.comfy.generator import ComfyGenerator
    from ..generators.comfy.inputs import preset_architecture

    latent, prompts = sources.latent, sources.prompts
    plan = make_plan(
        preset,
        preset_architecture(sources.model),
        widgets,
        None if latent is None else pixels_of(latent),
        None if sources.sigmas is None else len(sources.sigmas) - 1,
        None if sources.resume is None else Checkpoint.load(sources.resume.path).recipe,
    )
    known = prompts.texts is not None
    generator = ComfyGenerator(
        sources.model,
        sources.vae,
        (*prompts.conditionings, *(prompts.held_out_conditionings if known else ())),
        latent=latent or empty_latent(plan.height, plan.width),
        negative=sources.negative,
        cfg=plan.cfg,
        steps=plan.steps,
        scheduler=plan.scheduler,
        sigmas=sources.sigmas,
        prompts=(*prompts.texts, *prompts.held_out_texts) if prompts.texts is not None else None,
        gradient_vae=sources.gradient_vae,
    )
    return plan, generator


def pixels_of(latent: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a LATENT's pictures."""
    ratio = latent.get("downscale_ratio_spacial") or 8
    height, width = latent["samples"].shape[-2:]
    return height * ratio, width * ratio


def empty_latent(height: int, width: int) -> dict[str, Any]:
    """As EmptyLatentImage makes it; the generator adapts it to its model."""
    return {"samples": torch.zeros(1, 4, height // 8, width // 8), "downscale_ratio_spacial": 8}


def make_recipe(sources: Sources, plan: Plan, widgets: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The critics by name, and the recipe that asks each its own questions."""
    from ..distillation import Recipe
    from ..distillation.recipe import SAMPLED

    critics, questions = critics_and_questions(sources.loss)
    questions = (*questions, *kept_by_the_preset(sources, plan, questions, widgets["keep_questions"]))
    given = {name: widgets[name] for name in ("seed", "gradient_accumulation", "max_grad_norm", "timesteps")}
    stop = widgets["stop_probability"]
    recipe = Recipe(
        questions=questions,
        prompts=sources.prompts.texts or (),
        held_out=sources.prompts.held_out_texts if sources.prompts.texts is not None else (),
        stop_probability=None if stop >= 1 else stop,
        wordings=widgets.get("wordings", SAMPLED),
        **given,
        **with_targets(sources.loss, plan.recipe),
    )
    return critics, recipe


def kept_by_the_preset(sources: Sources, plan: Plan, questions: Sequence[Any], choice: str) -> tuple[Any, ...]:
    """The preset's keep questions, where the user has asked none and the words of the prompts are known."""
    from ..distillation import keep_questions
    from ..evaluation.held_out import can_read

    texts, critic = sources.prompts.texts, sources.loss.terms[0][0]
    guards = {text for q in questions if q.overlay is not None for text in q.overlay.guards()}
    if choice != FROM_PRESET or texts is None or any(q.role == "keep" and q.text not in guards for q in questions):
        return ()
    return tuple(q for q in keep_questions(plan.preset, texts) if can_read(critic, q.text))


def existing_lora(generator: Any, name: str, recipe: Any) -> dict[str, Tensor] | None:
    """The LoRA to start from, in the form of the one that is trained; None for a fresh one."""
    if name == NO_LORA:
        return None
    from ..core.tensor_file import read_tensors

    state, _ = read_tensors(folder_paths.get_full_path_or_raise("loras", name))
    return generator.as_initial(state, recipe.rank, recipe.lora_alpha, recipe.seed, recipe.lora_targets)


class Teaching:
    """A run whose parts are ready."""

    def __init__(
        self,
        sources: Sources,
        plan: Plan,
        generator: Any,
        critics: dict[str, Any],
        recipe: Any,
        memory: Fit,
        arrange: Callable[[Any], None],
        hidden: Any,
    ) -> None:
        from ..evaluation.held_out import Examiner, HeldOut, held_out_pairs

        self.generator, self.critics, self.recipe = generator, critics, recipe
        self.memory, self.arrange = memory, arrange
        self.hidden, self.plan = hidden, plan
        self.resume_from = None if sources.resume is None else sources.resume.path
        pairs = held_out_pairs(generator, recipe)
        some = first_of_each(pairs, SHOWN)
        self.overlay = next((q.overlay for q in recipe.questions if q.role == "control"), None)
        captions = self.captions_of(some)
        about = [plan.describe(), *plan.notes, *notes_on(sources), *unknown_words(plan, critics, recipe)]
        log.info("Memory plan: %s", memory.line)
        for note in about[1:]:
            log.warning("%s", note)
        key = view_key(hidden)
        self.view = View(key, hidden.unique_id, recipe, captions, about, memory.line)
        self.progress = Progress(recipe, hidden.unique_id, has_view=key is not None)
        self.examiner = Examiner(generator, critics, recipe, pairs, sources.referee, self.on_picture)
        self.shown = Examiner(generator, critics, recipe, HeldOut(some.indices, some.seeds))
        self.captions = captions

    def run(self, widgets: dict[str, Any], initial: dict[str, Tensor] | None) -> Taught:
        """The whole of it. Whatever happens, the view says how it ended."""
        from ..distillation import StopRequested

        try:
            return self._run(widgets, initial)
        except (comfy.model_management.InterruptProcessingException, StopRequested):
            trained = self.view.state["step"]
            self.view.finish("stopped", self.view.state["message"] if trained else "cancelled before the first step")
            raise comfy.model_management.InterruptProcessingException() from None
        except Exception as error:
            self.view.finish("failed", str(error))
            raise

    def _run(self, widgets: dict[str, Any], initial: dict[str, Tensor] | None) -> Taught:
        from ..distillation import StopRequested
        from ..evaluation.watch import Watch

        before = self.examiner.look(0.0)
        base = self.shown.look(0.0, other_size=False)
        self.show(0, base, None)
        # One that looks only at the end looks after the last step.
        watch = Watch(self.shown, widgets["look_every"] or self.recipe.train_steps, widgets["patience"], self.on_glance)
        checkpoints = Checkpoints(self.view.folder, widgets["checkpoint_every"], self.picture)
        result = self.distil([ending_when_cancelled(watch), checkpoints], initial)
        partial = result.stop_reason == "interrupted"
        if partial and not self.view.stop_requested:
            self.stop(result, watch)
        if widgets["give"] == BEST and watch.best is not None:
            result = result.at(watch.best)
        try:
            findings = self.examiner.compare(self.examiner.look(1.0))
        except (comfy.model_management.InterruptProcessingException, StopRequested):
            self.stop(result, watch)
        except Exception as error:
            log.error("The LoRA is trained, but then %s: %s. It is %s", type(error).__name__, error, self.keep(result))
            raise  # as it is: ComfyUI knows what to do where memory is full
        return self.finish(result, watch, before, findings, partial, checkpoints)

    def distil(self, observers: list[Any], initial: dict[str, Tensor] | None) -> Any:
        """The result of the training. One that failed or went astray is written down first.

        Raises:
            DualProcessError: the numbers went astray; the message says where the last good LoRA lies.
        """
        from ..distillation.fallback import distill_by_plan

        with written_down(self.keep):
            return distill_by_plan(
                self.generator,
                self.critics,
                self.recipe,
                self.memory.expected,
                self.memory.sizes,
                self.arrange,
                on_step=self.on_step,
                should_stop=lambda: self.cancelled() or self.view.stop_requested,
                resume_from=self.resume_from,
                on_anchor=self.on_anchor,
                observers=observers,
                initial_lora=initial,
            )

    # How it ends

    def stop(self, result: Any, watch: Any) -> None:
        """Writes the LoRA so far down, then ends ComfyUI's run, so that nothing partial is cached."""
        if result.steps:
            name = self.keep(result, watch)
            self.view.say(f"stopped at step {result.steps}, saved as {name}")
            log.info("Cancelled after %d steps: the LoRA so far is %s", result.steps, name)
        comfy.model_management.interrupt_current_processing(False)
        raise comfy.model_management.InterruptProcessingException()

    def keep(self, result: Any, watch: Any = None) -> str:
        findings = None if watch is None else watch.comparison()
        verdict = None if findings is None else findings.to_dict()
        checkpoints = Checkpoints(self.view.folder, picture=self.picture)
        name = keep(result, checkpoints, workflow_metadata(self.hidden), verdict)
        self.view.saved_as(name)
        return name

    def finish(self, result: Any, watch: Any, before: Any, findings: Any, partial: bool, checkpoints: Any) -> Taught:
        verdict = findings.to_dict()
        lora = TrainedLora.of(result, workflow_metadata(self.hidden), verdict)
        lora.preview = write_report(
            self.view.folder, result, watch, findings, self.overlay, self.captions_of(self.examiner.pairs)
        )
        lora.view = self.view
        if partial:
            checkpoints.keep(result)
            _unfinished[self.hidden.unique_id] = runs_left_unfinished(self.hidden.unique_id) + 1
        else:
            checkpoints.forget()
        memory = f"{self.memory.line}; taken at most {peak_memory(self.generator.model.load_device) / 1e9:.1f} GB"
        log.info("Memory plan: %s", memory)
        message = f"stopped at step {result.steps} and kept" if partial else ""
        if result.stop_reason == "early_stop":
            message = f"stopped early, at step {result.steps}"
        self.view.finish("done", message, verdict=verdict, memory=memory)
        return Taught(
            lora,
            lora.preview,
            to_comfy(before.images),
            to_comfy(findings.after.images),
            findings.verdict.text,
            {"loss": [report.loss for report in result.history]},
        )

    def captions_of(self, pairs: Any) -> list[str]:
        """What the control is at each picture's value, where there is a slider, and the prompts."""
        from ..core.protocols import RangedOverlay, slider_values

        words = self.generator.prompts
        captions = [words[i] if words is not None else f"prompt {i + 1}" for i in pairs.indices]
        if not isinstance(self.overlay, RangedOverlay):
            return captions
        values = slider_values(len(pairs))
        return [f"{self.overlay.describe(value)}: {c}" for c, value in zip(captions, values, strict=True)]

    # What the user sees of it

    def cancelled(self) -> bool:
        return self.progress.is_cancelled()

    def on_step(self, report: Any, preview: Any) -> None:
        self.progress(report, preview)
        self.view.on_step(report, preview)

    def on_anchor(self, done: int, total: int) -> None:
        self.progress.on_anchor(done, total)
        self.view.on_anchor(done, total)

    def on_picture(self, done: int, total: int) -> None:
        self.progress.on_picture(done, total)
        self.view.on_picture(done, total)

    def on_glance(self, glance: Any) -> None:
        self.show(glance.step, glance.look, glance.score)

    def show(self, step: int, look: Any, score: float | None) -> None:
        pictures = look.images if self.overlay is None else self.overlay.apply(look.images)
        known = {name: round(value, 4) for name, value in look.measures.items() if name.startswith("p_")}
        self.view.show(step, pictures, {"score": score, **known})

    def picture(self) -> Path | None:
        """The newest picture of the view, which a checkpoint is listed with."""
        path = self.view.folder / "now_0.jpg"
        return path if path.is_file() else None


def ending_when_cancelled(observer: Any) -> Any:
    """ComfyUI reports a cancel once, to whoever samples next; the run must hear of it, too."""
    from ..distillation import StopRequested

    def observe(run: Any, report: Any, preview: Any) -> None:
        try:
            observer(run, report, preview)
        except comfy.model_management.InterruptProcessingException as error:
            raise StopRequested from error

    return observe


def first_of_each(pairs: Any, most: int) -> Any:
    """A pair of each prompt; two of a single one."""
    from ..evaluation.held_out import HeldOut

    numbers = [n for n, index in enumerate(pairs.indices) if index not in pairs.indices[:n]][:most]
    numbers = numbers if len(numbers) > 1 else list(range(min(2, len(pairs))))
    return HeldOut(tuple(pairs.indices[n] for n in numbers), tuple(pairs.seeds[n] for n in numbers))


def notes_on(sources: Sources) -> list[str]:
    """What the user should know of the sockets."""
    notes: list[str] = []
    count = 1 if sources.latent is None else len(sources.latent["samples"])
    if count > 1:
        notes.append(f"The LATENT holds {count} pictures, of which only the size counts: set batch_size instead.")
    if sources.prompts.texts is None and sources.prompts.held_out_texts:
        notes.append("Held-out prompts are left out: they need the texts of all training prompts.")
    return notes


def unknown_words(plan: Plan, critics: dict[str, Any], recipe: Any) -> list[str]:
    """Notes on words that a model with a small vocabulary cannot read."""
    from ..demo.tokenizer import PROMPT_WORDS
    from ..distillation import PRESETS
    from ..distillation.question import AS_BEFORE

    notes: list[str] = []
    if plan.preset is PRESETS["demo"]:
        words = {word for prompt in (*recipe.prompts, *recipe.held_out) for word in prompt.lower().split()}
        if strange := sorted(words - {*PROMPT_WORDS}):
            notes.append(f"The demo models do not know {', '.join(strange)}; they know {', '.join(PROMPT_WORDS)}.")
    for question in recipe.questions:
        know = getattr(critics[question.critic], "unknown_words", lambda text: [])
        for text in question.texts:
            if strange := know(f"{text} {question.answer}".replace(AS_BEFORE, "")):
                notes.append(f"The critic cannot read {', '.join(strange)} in {text!r}, and guesses.")
    return notes
