"""A process while it goes on: what the node shows of it, and how its models are asked in ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import comfy.model_management
import comfy.utils
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from .progress import PREVIEW_SIZE, show_text
from .types import outside_inference_mode

THINKER = "dual_process_thinker"  # the attribute of a critic that has a thinker of its own


def thinker_of(critic: Any) -> Any:
    """Who plans, looks and reflects: the critic's own thinker, or one that asks any critic for JSON."""
    from ..process import CriticThinker

    return getattr(critic, THINKER, CriticThinker)(critic)


def interrupt() -> NoReturn:
    """Ends ComfyUI's run as a cancel does, so that nothing partial is cached."""
    comfy.model_management.interrupt_current_processing(False)
    raise comfy.model_management.InterruptProcessingException()


class Stages:
    """Shows each stage of a process on the face of a node; remembers a cancel that ComfyUI reports only once.

    Args:
        total: passes of the painter that there may be.
    """

    def __init__(self, total: int, node_id: str | None) -> None:
        self._total, self._done, self._node_id, self._cancelled = total, 0, node_id, False
        self._bar = comfy.utils.ProgressBar(total, node_id=node_id)

    def is_cancelled(self) -> bool:
        self._cancelled = self._cancelled or comfy.model_management.processing_interrupted()
        return self._cancelled

    def on_step(self, painting: Any) -> None:
        self._done += 1
        try:
            picture = painting.canvases[painting.trajectory.steps[-1].picture].picture
            preview = ("JPEG", to_pil_image(picture[0]), PREVIEW_SIZE)
            self._bar.update_absolute(self._done, self._total, preview)
        except comfy.model_management.InterruptProcessingException:
            self._cancelled = True

    def say(self, text: str) -> None:
        show_text(text, self._node_id)

    @contextmanager
    def during(self, text: str) -> Iterator[None]:
        """While a model is at work. A cancel that it reports ends the process as one between two passes does."""
        from ..core.errors import StopRequested

        self.say(text)
        try:
            yield
        except comfy.model_management.InterruptProcessingException:
            self._cancelled = True
            raise StopRequested from None


class ShownPainter:
    """A painter whose passes are shown, and that may begin with a picture that is there already, or after `done`."""

    def __init__(self, painter: Any, stages: Stages, begin: Callable[[], Any] | None = None, done: int = 0) -> None:
        self._painter, self._stages, self._begin, self._number = painter, stages, begin, done

    @property
    def info(self) -> Any:
        return self._painter.info

    @property
    def keeps_outside(self) -> bool:
        return self._painter.keeps_outside

    def draft(self, prompt: str, seed: int) -> Any:
        with self._stages.during(f"{self._next()}: drafting {prompt}"):
            return self._painter.draft(prompt, seed) if self._begin is None else self._begin()

    def stroke(self, canvas: Any, stroke: Any, seed: int) -> Any:
        with self._stages.during(f"{self._next()}: {stroke.instruction}"):
            return self._painter.stroke(canvas, stroke, seed)

    def _next(self) -> str:
        self._number += 1
        return f"pass {self._number}"


class ShownThinker:
    """A thinker whose work is shown, and is done outside of inference mode: its critic may take part in training."""

    def __init__(self, thinker: Any, stages: Stages) -> None:
        self._thinker, self._stages = thinker, stages

    @property
    def info(self) -> Any:
        return self._thinker.info

    @property
    def control(self) -> Any:
        return self._thinker.control

    def plan(self, prompt: str) -> Any:
        with self._stages.during("planning"), outside_inference_mode():
            return self._thinker.plan(prompt)

    def conflict(self, stroke: Any, scene: str, prompt: str) -> str:
        with self._stages.during(f"does it fit? {stroke.instruction}"), outside_inference_mode():
            return self._thinker.conflict(stroke, scene, prompt)

    def read(self, picture: Tensor, facts: Sequence[Any]) -> list[float]:
        with self._stages.during(f"inspecting {len(facts)} facts"), outside_inference_mode():
            return self._thinker.read(picture.clone(), facts)

    def reflect(self, picture: Tensor, failing: Sequence[Any], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        with self._stages.during(f"what is wrong? {failing[0].question}"), outside_inference_mode():
            return self._thinker.reflect(picture.clone(), failing, failed, prompt)


def canvas_of(painter: Any, picture: Tensor) -> Any:
    """A painter's canvas of a picture [1, 3, H, W].

    Raises:
        ProcessError: the painter only paints on what it has made itself.
    """
    from ..core.errors import ProcessError

    if not hasattr(painter, "canvas_of_picture"):
        raise ProcessError(
            "This painter only goes on from pictures that it has made itself in the same run: begin with Paint by "
            "Process and a prompt, or take a painter from the Painter node."
        )
    return painter.canvas_of_picture(picture)


def as_latent(canvas: Any) -> Any:
    """LATENT of a canvas; where its painter keeps something else, nodes behind it say so."""
    latent = canvas.latent
    if isinstance(latent, Tensor) and latent.ndim in (4, 5):
        return {"samples": latent.cpu()}
    return ExecutionBlocker("This painter keeps no latent that other nodes could use: take the image.")
