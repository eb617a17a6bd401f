"""Training in ComfyUI: what both training nodes do with a generator, critics and a recipe."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import comfy.model_management
import folder_paths

from .lora_model import COMFYUI, TrainedLora, free_path, save_lora
from .progress import Progress
from .run_files import Checkpoints, new_run_folder
from .types import VqaTerms

AUTO, BOTH, TURNS = "auto", "keep both loaded", "take turns"
CRITIC_SHARE = 0.4  # of a critic's weights, for what its gradient keeps of one picture: a 7 B in 16 bits, 2048 tokens
log = logging.getLogger(__name__)


def critics_and_questions(loss: VqaTerms) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The critics by name, and the questions, each with the name of the critic that is asked it."""
    critics, questions = {}, []
    for number, (critic, asked) in enumerate(loss.terms, start=1):
        name = "default" if number == 1 else f"critic {number}"
        critics[name] = critic
        questions += [replace(question, critic=name) for question in asked]
    return critics, tuple(questions)


def with_targets(loss: VqaTerms, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields with the loss's targets, if it has any, and with their weight."""
    if not loss.targets:
        return dict(recipe)
    penalties = {**recipe.get("penalties", {}), "targets": loss.target_weight}
    return {**recipe, "penalties": penalties, "targets": loss.targets}


def held_out(seed: int, num_prompts: int) -> Any:
    """A picture of every prompt, and a second one of the first few, to see whether seeds still differ."""
    from ..evaluation.held_out import PROMPTS, HeldOut

    indices = [*range(num_prompts), *range(min(PROMPTS, num_prompts))]
    return HeldOut(tuple(indices), tuple((seed + number) % 2**64 for number in range(len(indices))))


def patchers(critics: dict[str, Any]) -> list[Any]:
    """Of the critics that ComfyUI loads."""
    return [c.patcher for c in critics.values() if hasattr(c, "patcher") and not getattr(c, "offload", False)]


def fit_together(generator: Any, critics: dict[str, Any], batch_size: int) -> bool:
    """Whether model, VAE and critics can be on the device at once, with room for a step of so many pictures."""
    device = generator.model.load_device
    if comfy.model_management.is_device_cpu(device):
        return True
    ours = {id(p.model): p for p in (generator.model, *(vae.patcher for vae in generator.vaes))}.values()
    weights = sum(patcher.model_size() for patcher in ours if patcher.load_device == device)
    judges = critic_sizes(critics, device)
    # Critics judge one after the other, beside the graph of the pictures.
    working = generator.working_memory(batch_size) + CRITIC_SHARE * batch_size * max(judges, default=0)
    reserve = working + comfy.model_management.minimum_inference_memory()
    return weights + sum(judges) + reserve <= comfy.model_management.get_total_memory(device)


def critic_sizes(critics: dict[str, Any], device: Any) -> list[int]:
    """Bytes of each model that judges on the device, those that ComfyUI does not manage included."""
    known = [critic.patcher for critic in critics.values() if hasattr(critic, "patcher")]
    managed = {id(p.model): p.model_size() for p in known if p.load_device == device}
    fixed = [critic.model for critic in critics.values() if not hasattr(critic, "patcher") and critic.device == device]
    return [*managed.values(), *(comfy.model_management.module_size(model) for model in fixed)]


def train(generator: Any, critics: dict[str, Any], recipe: Any, progress: Progress, take_turns: bool) -> Any:
    """The result of a whole run. One that was cancelled, failed or went astray is written down first.

    Raises:
        InterruptProcessingException: the user cancelled.
        DualProcessError: the numbers went astray; the message says where the last good LoRA lies.
    """
    from ..distillation import distill

    with written_down(keep):
        result = distill(
            generator,
            critics,
            recipe,
            progress,
            progress.is_cancelled,
            take_turns=take_turns,
            on_anchor=progress.on_anchor,
        )
    if result.stop_reason == "interrupted" or progress.is_cancelled():  # the latter: during the last step
        stop(result)
    return result


@contextmanager
def written_down(keep: Callable[[Any], str]) -> Iterator[None]:
    """A training inside that fails or goes astray is first written down by `keep`, which gives the LoRA's name.

    Raises:
        DualProcessError: the numbers went astray; the message says where the last good LoRA lies.
    """
    from ..distillation import DistillationDiverged, DistillationFailed, DualProcessError

    try:
        yield
    except DistillationDiverged as error:
        raise DualProcessError(f"{error} The LoRA so far is {keep(error.result)}.") from error
    except DistillationFailed as error:
        log.error("%s It is %s", error, keep(error.result))
        raise error.cause from None  # ComfyUI knows what to do where memory is full


@contextmanager
def kept_if_it_fails(result: Any) -> Iterator[None]:
    """What comes after training may fail, for want of memory for example: the LoRA is written down first.

    Raises:
        InterruptProcessingException: the user cancelled.
    """
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        stop(result)
    except Exception as error:
        log.error("The LoRA is trained, but then %s: %s. It is %s", type(error).__name__, error, keep(result))
        raise  # as it is: ComfyUI knows what to do where memory is full


def stop(result: Any) -> NoReturn:
    """Writes the LoRA so far down, then ends ComfyUI's run, so that nothing partial is cached."""
    log.info("Cancelled after %d steps: the LoRA so far is %s", result.steps, keep(result))
    comfy.model_management.interrupt_current_processing(False)
    raise comfy.model_management.InterruptProcessingException()


def keep(
    result: Any,
    checkpoints: Checkpoints | None = None,
    workflow: dict[str, str] | None = None,
    verdict: dict[str, Any] | None = None,
) -> str:
    """Writes the LoRA so far where loaders list it, and a checkpoint of the run; the LoRA's name there."""
    root = Path(folder_paths.get_folder_paths("loras")[0])
    folder = root / "dual_process" / "interrupted"
    folder.mkdir(parents=True, exist_ok=True)
    lora = TrainedLora.of(result, workflow or {}, verdict)
    path = save_lora(free_path(folder, "lora"), lora, COMFYUI)
    (checkpoints or Checkpoints(new_run_folder(uuid.uuid4().hex))).keep(result)
    return path.relative_to(root).as_posix()
