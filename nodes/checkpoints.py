"""Going on with a run that ended before it was done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from .refusals import refused
from .run_files import PICTURE, runs_folder
from .types import CATEGORY
from .types import Checkpoint as CheckpointSocket
from .view import STATE

NONE_FOUND = "(no run was left unfinished)"


@dataclass(frozen=True)
class ChosenCheckpoint:
    """What travels on a CHECKPOINT wire."""

    path: Path
    step: int


def unfinished_runs() -> dict[str, Path]:
    """Every checkpoint by the name that the user sees, the newest run first."""
    found: dict[str, Path] = {}
    for folder in sorted(runs_folder().glob("*"), reverse=True):
        for path in sorted(folder.glob("checkpoint_*.safetensors"), reverse=True):
            found[_label(folder, path)] = path
    return found


def _label(folder: Path, path: Path) -> str:
    """Such as "2026-03-01 18.05 step 40 of 200: Is it night?"."""
    day, clock = folder.name.split("_")[:2]
    step = int(path.stem.removeprefix("checkpoint_"))
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        rest = f" of {state['train_steps']}: {state['questions'][0]['text']}"
    except (OSError, ValueError, LookupError):
        rest = ""
    return f"{day} {clock[:5].replace('-', '.')} step {step}{rest[:70]} [{folder.name[-6:]}]"


class LoadDistillationCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadDistillationCheckpoint",
            display_name="Load Distillation Checkpoint",
            category=CATEGORY,
            description="A run that was stopped or broke off, to go on with: connect it to resume of Distill LoRA, "
            "with everything else as it was. The LoRA comes out as if the run had never stopped. Press R to refresh "
            "the list.",
            search_aliases=["resume", "continue training"],
            inputs=[
                io.Combo.Input(
                    "run",
                    options=list(unfinished_runs()) or [NONE_FOUND],
                    tooltip="Runs that were left unfinished, the newest first, by date, step and question.",
                ),
            ],
            outputs=[
                CheckpointSocket.Output(display_name="checkpoint", tooltip="For resume of Distill LoRA."),
                io.Image.Output(display_name="picture", tooltip="The held-out picture when the checkpoint was made."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, run: str) -> bool | str:
        if run in unfinished_runs():
            return True
        return refused(
            cls, f"The run {run!r} is not among those left unfinished. Press R to refresh the list, and choose one."
        )

    @classmethod
    def fingerprint_inputs(cls, run: str) -> Any:
        path = unfinished_runs().get(run)
        return None if path is None else path.stat().st_mtime_ns

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        path = unfinished_runs()[run]
        picture = read_picture(path.with_name(PICTURE))
        chosen = ChosenCheckpoint(path, int(path.stem.removeprefix("checkpoint_")))
        return io.NodeOutput(chosen, picture, ui=ui.PreviewImage(picture, cls=cls))


def read_picture(path: Path) -> Tensor:
    """IMAGE of one; a black one where no picture had been made yet."""
    if not path.is_file():
        return torch.zeros(1, 64, 64, 3)
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255)[None]


NODES = [LoadDistillationCheckpoint]
