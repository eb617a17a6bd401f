"""What the user sees of a run in the node: a bar, the current picture, loss and P(answer)."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from server import PromptServer
from torchvision.transforms.v2.functional import to_pil_image

PREVIEW_SIZE = 512  # pixels


def show_text(text: str, node_id: str | None) -> None:
    """Shows a text on the face of a node, until the next one."""
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and server is not None:
        server.send_progress_text(text, node_id)


class Progress:
    """Called after every step; remembers a cancel that ComfyUI reports only once."""

    def __init__(self, recipe: Any, node_id: str | None, has_view: bool = False) -> None:
        self._questions = recipe.questions
        self._bar = comfy.utils.ProgressBar(recipe.train_steps, node_id=node_id)
        self._anchor_bar = comfy.utils.ProgressBar(recipe.train_steps, node_id=node_id)  # a bar does not run backwards
        self._node_id = node_id
        self._has_view = has_view  # which shows pictures and numbers itself
        self._cancelled = False

    def is_cancelled(self) -> bool:
        self._cancelled = self._cancelled or comfy.model_management.processing_interrupted()
        return self._cancelled

    def __call__(self, report: Any, preview: Any) -> None:
        if self._has_view:
            self._show(self._bar, report.step, report.train_steps)
            return
        picture = preview.image[:1].float().cpu()
        overlay = self._questions[0].at(preview.slider).overlay
        if overlay is not None:
            picture = overlay.apply(picture)
        self._show(self._bar, report.step, report.train_steps, ("JPEG", to_pil_image(picture[0]), PREVIEW_SIZE))
        text = f"step {report.step} / {report.train_steps}   loss {report.loss:.3f}"
        for role, name in (("control", "P(answer)"), ("keep", "P(kept)")):
            of_role = [p for p, q in zip(report.p_answer, self._questions, strict=True) if q.role == role]
            if known := [f"{p:.3f}" for p in of_role if p == p]:  # nan: not asked in this step
                text += f"   {name} {', '.join(known)}"
        self._say(text)

    def on_anchor(self, done: int, total: int) -> None:
        """While the pool of anchors is made."""
        self._show(self._anchor_bar, done, total)
        self._say(f"looking for anchors: picture {done} / {total}")

    def on_picture(self, done: int, total: int) -> None:
        """While pictures before and after training are made."""
        self._say(f"picture {done} / {total}")

    def _show(self, bar: Any, done: int, total: int, preview: Any = None) -> None:
        try:
            bar.update_absolute(done, total, preview)
        except comfy.model_management.InterruptProcessingException:
            self._cancelled = True

    def _say(self, text: str) -> None:
        if not self._has_view:
            show_text(text, self._node_id)
