"""What a run leaves in its folder below `output/dual_process/runs`: checkpoints while it goes on, then its report."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from .lora_model import COMFYUI, TrainedLora, save_lora
from .types import to_comfy

KEPT = 2  # checkpoints of a run
PICTURE = "checkpoint.jpg"
log = logging.getLogger(__name__)


def runs_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "dual_process" / "runs"


def favourites_folder() -> Path:
    """Where the sessions of Pick Favourites lie."""
    return Path(folder_paths.get_output_directory()) / "dual_process" / "favourites"


def trajectories_folder() -> Path:
    """Where pictures that were made step by step are kept, each in a folder with all its steps."""
    return Path(folder_paths.get_output_directory()) / "dual_process" / "trajectories"


def interrupted_folder() -> Path:
    """Where those are kept that were cancelled or failed on the way."""
    return Path(folder_paths.get_output_directory()) / "dual_process" / "interrupted"


def path_below(root: Path, name: str, error: type[Exception], where: str, example: str) -> Path:
    """The path that a user's `name` means below `root`, never outside of it.

    Raises:
        Exception: `error`, where the name is empty, absolute, or leads out of the folder.
    """
    parts = name.strip().replace("\\", "/").split("/")
    wrong = [p for p in parts if p in ("", ".", "..") or ":" in p or "\0" in p or p != p.strip()]
    path = root.joinpath(*parts) if not wrong else root
    if wrong or not path.resolve().is_relative_to(root.resolve()):
        raise error(
            f"Expected a name below {where} such as '{example}' or 'mine/{example}', got {name!r}. Leave out '..', "
            "drive letters and a leading '/'."
        )
    return path


def free_folder(folder: Path, stem: str) -> Path:
    """The next numbered path, `<stem>_00001` or higher, that nothing has."""
    numbered = re.compile(rf"{re.escape(stem)}_(\d+)", re.IGNORECASE)  # some file systems know no case
    taken = [int(found[1]) for path in folder.glob("*") if (found := numbered.fullmatch(path.name))]
    return folder / f"{stem}_{max(taken, default=0) + 1:05}"


def is_key(text: Any) -> bool:
    """Whether a text can be the end of a run folder's name: what comes from a browser is not trusted."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{8,40}", text) is not None


def new_run_folder(key: str) -> Path:
    folder = runs_folder() / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def newest_run(key: str) -> Path | None:
    """The folder of the newest run under a key, None if there is none (or no such key can be)."""
    found = sorted(runs_folder().glob(f"*_{key}")) if is_key(key) else []
    return found[-1] if found else None


class Checkpoints:
    """An observer of a run that writes a checkpoint every few steps, and keeps the last two.

    Args:
        folder: of the run.
        every: steps between two; 0 for none.
        picture: gives the file of the newest picture, which they are listed with.
    """

    def __init__(self, folder: Path, every: int = 0, picture: Callable[[], Path | None] = lambda: None) -> None:
        self.folder, self._every, self._picture = folder, every, picture

    def __call__(self, run: Any, report: Any, preview: Any) -> None:
        if self._every and report.step % self._every == 0 and not run.finished:
            run.snapshot().save(self._path(report.step))
            self._prune()

    def keep(self, result: Any) -> None:
        """Of a run that ended before it was done. One that cannot be written is only logged."""
        from ..distillation import DualProcessError

        if result.steps == 0:
            return
        try:
            result.save_checkpoint(self._path(result.steps))
            self._prune()
        except DualProcessError as error:  # the LoRA is what counts
            log.warning("%s The LoRA is there without a checkpoint to go on from.", error)

    def forget(self) -> None:
        """Of a run that is done."""
        for path in self._all():
            path.unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        if (picture := self._picture()) is not None:
            shutil.copyfile(picture, self.folder / PICTURE)
        return self.folder / f"checkpoint_{step:06}.safetensors"

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint_*.safetensors"))

    def _prune(self) -> None:
        for path in self._all()[:-KEPT]:
            path.unlink(missing_ok=True)


def write_report(folder: Path, result: Any, watch: Any, findings: Any, overlay: Any, captions: Sequence[str]) -> Tensor:
    """Numbers, plots, pictures, verdict and the best LoRA by held-out judgement; the labelled comparison, an IMAGE."""
    from ..distillation.report import before_after_figure, picture_of, save_progress, write_json

    rows = [findings.before.images, findings.after.images]
    before, after = rows if overlay is None else [overlay.apply(images) for images in rows]
    comparison = to_comfy(picture_of(before_after_figure(before, after, captions)))
    try:
        save_picture(folder / "before_after.png", comparison)
        save_progress(folder / "progress.png", result.history, result.recipe.questions)
        report = {
            "steps": result.steps,
            "stop_reason": result.stop_reason,
            "seconds": sum(r.seconds for r in result.history),
            "held_out_scores": [{"step": step, "score": score} for step, score in watch.scores],
            **findings.to_dict(),
            "recipe": result.recipe.to_dict(),
        }
        write_json(folder / "report.json", report)
        if watch.best is not None:
            best = result.at(watch.best)
            title = {"modelspec.title": f"best of the run, step {best.steps}"}
            save_lora(folder / "best.safetensors", TrainedLora.of(best, {}), COMFYUI, title)
            result.at(result.checkpoint)
    except OSError as error:
        log.warning("The report of the run could not be written into %s: %s.", folder.name, error)
    return comparison


def save_picture(path: Path, image: Tensor) -> None:
    """One IMAGE [1, H, W, 3] as PNG."""
    from PIL import Image

    Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy()).save(path)
