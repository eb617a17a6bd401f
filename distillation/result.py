"""What a distillation reports while it runs and hands back at its end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DualProcessError, LoraFileError
from ..core.protocols import Generator, ModelInfo
from ..core.tensor_file import write_tensors
from .checkpoint import LORA, Checkpoint
from .recipe import Recipe
from .slider import follows_slider, slider_metadata, write_slider

VERSION = "0.3.0"


@dataclass(frozen=True)
class StepReport:
    """One optimiser step."""

    step: int  # counted from 1
    train_steps: int
    loss: float  # VQA loss without regularisers, nats
    p_answer: tuple[float, ...]  # P(wanted answer) per question, mean over the samples asked; nan if none was
    penalties: Mapping[str, float]  # the recipe's, by name, before their weights
    grad_norm: float  # of the LoRA, before clipping
    learning_rate: float
    seconds: float

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StepReport:
        """A report that `dataclasses.asdict` wrote, in a checkpoint of this version or of 0.1."""
        row = dict(row)
        old = {"velocity": row.pop("velocity_distance", 0.0), "range": row.pop("range_penalty", 0.0)}
        penalties = row.pop("penalties", {name: value for name, value in old.items() if value})
        return cls(**{**row, "penalties": penalties, "p_answer": tuple(row["p_answer"])})


@dataclass(frozen=True)
class Preview:
    """The newest picture of a step, for display only."""

    image: Tensor  # [B, 3, H, W] in [0, 1], on the generator's device
    prompt_indices: tuple[int, ...]
    slider: float | None = None  # the value that it was made at


@dataclass(frozen=True)
class DistillationResult:
    """A trained (or partly trained) LoRA and how it came to be.

    `stop_reason` is "completed", "early_stop" (every P(answer) stayed above the threshold), "interrupted", or in the
    result of a `DistillationError` "diverged" or "failed".
    """

    generator: Generator
    critics: Mapping[str, ModelInfo]
    recipe: Recipe
    history: tuple[StepReport, ...]
    stop_reason: str
    checkpoint: Checkpoint

    @property
    def steps(self) -> int:
        return len(self.history)

    def at(self, checkpoint: Checkpoint) -> DistillationResult:
        """This run as it stood at one of its own snapshots; the generator's LoRA becomes the snapshot's."""
        with torch.no_grad():
            for name, parameter in self.generator.lora_parameters().items():
                parameter.copy_(checkpoint.tensors[LORA + name])
        return replace(self, history=self.history[: checkpoint.steps], checkpoint=checkpoint)

    @property
    def follows_slider(self) -> bool:
        """Whether the LoRA has a second part, which a slider counts."""
        return follows_slider(self.recipe)

    def lora_state_dict(self, format: str = "diffusers", slider: bool = False) -> dict[str, Tensor]:
        """The LoRA as it was when training ended, see `Generator.lora_state_dict`.

        Raises:
            LoraFileError: the generator has been given another LoRA since.
        """
        now = {LORA + name: p.detach().cpu() for name, p in self.generator.lora_parameters().items()}
        then = {name: t for name, t in self.checkpoint.tensors.items() if name.startswith(LORA)}
        if now.keys() != then.keys() or not all(torch.equal(now[name], then[name]) for name in then):
            raise LoraFileError(
                "The generator has been given another LoRA since this one was trained. Save each result before the "
                "next run; this one's checkpoint can still be saved and resumed from."
            )
        return self.generator.lora_state_dict(format, **({"slider": True} if slider else {}))

    def save(
        self,
        path: str | Path,
        format: str = "diffusers",
        title: str | None = None,
        verdict: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes the LoRA as safetensors with `.alpha` and full metadata; atomic.

        What a slider counts is a file of its own beside it, see `slider.slider_path`.

        Args:
            path: the file; its folder is made if need be.
            format: "diffusers" (read by diffusers and ComfyUI) or "comfyui" (ComfyUI's own fused names).
            title: for `modelspec.title`; the file's stem by default.
            verdict: what became of the model, for the metadata; see `evaluation.held_out`.

        Raises:
            LoraFileError: the file cannot be written, or the generator has been given another LoRA since.
        """
        constant, title = self.lora_state_dict(format), title or Path(path).stem
        metadata = self.metadata(title, verdict)
        if self.follows_slider:
            return write_slider(path, constant, self.lora_state_dict(format, slider=True), metadata)
        return write_tensors(path, constant, metadata)

    def save_checkpoint(self, path: str | Path) -> Path:
        """Writes what `distill(..., resume_from=path)` needs to go on as if nothing had happened."""
        metadata = {**self.checkpoint.metadata, "stop_reason": self.stop_reason}
        return Checkpoint(self.checkpoint.tensors, metadata).save(path)

    def history_summary(self) -> dict[str, Any]:
        """Plain figures of the run; seconds are the only ones that differ from one equal run to the next."""
        first, last = self.history[:1], self.history[-1:]
        return {
            "steps": self.steps,
            "stop_reason": self.stop_reason,
            "seconds": round(sum(r.seconds for r in self.history), 3),
            "first_loss": first[0].loss if first else None,
            "last_loss": last[0].loss if last else None,
            "last_p_answer": [None if math.isnan(p) else p for p in last[0].p_answer] if last else None,
        }

    def metadata(self, title: str, verdict: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The safetensors metadata: how the LoRA was made, and the fields that other tools read."""
        base = self.generator.info
        questions = "; ".join(f"{q.text} → {q.answer}" for q in self.recipe.questions)
        return {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": f"{base.architecture}/lora",
            "modelspec.implementation": "https://github.com/huggingface/diffusers",
            "modelspec.title": title,
            "modelspec.description": f"Dual-process distillation of: {questions}",
            "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "modelspec.tags": "dual-process",
            "modelspec.usage_hint": "Strength 1.0 is the model as it was trained.",
            # What LoRA browsers read of kohya's trainer.
            "ss_network_dim": str(self.recipe.rank),
            "ss_network_alpha": str(self.recipe.lora_alpha),
            "ss_learning_rate": str(self.recipe.learning_rate),
            "ss_seed": str(self.recipe.seed),
            "ss_steps": str(self.steps),
            "ss_tag_frequency": json.dumps({"prompts": dict.fromkeys(self.recipe.prompts, 1)}),
            "dual_process.version": VERSION,
            "dual_process.recipe": json.dumps(self.recipe.to_dict()),
            "dual_process.base_model": json.dumps(base.to_dict()),
            "dual_process.critics": json.dumps({name: info.to_dict() for name, info in self.critics.items()}),
            "dual_process.history": json.dumps(self.history_summary()),
            **slider_metadata(self.recipe),
            **({} if verdict is None else {"dual_process.verdict": json.dumps(verdict)}),
            **({"dual_process.anchors": self.checkpoint.metadata["anchors"]} if self.checkpoint.anchors else {}),
        }


class DistillationError(DualProcessError):
    """A run ended before its time; `result` holds the LoRA and the steps until then."""

    result: DistillationResult


class DistillationFailed(DistillationError):
    """A step after the first failed, such as for want of memory: `cause`, which is also this error's __cause__."""

    def __init__(self, step: int, cause: Exception, result: DistillationResult) -> None:
        super().__init__(
            f"Step {step} failed ({type(cause).__name__}: {cause}), so training stopped there; the LoRA of step "
            f"{step - 1} is kept."
        )
        self.step, self.cause, self.result = step, cause, result


class DistillationDiverged(DistillationError):
    """A loss or gradient was not finite; `result` holds the last good LoRA and the steps before."""

    def __init__(self, step: int, what: str, result: DistillationResult) -> None:
        super().__init__(
            f"The {what} of step {step} is not a finite number, so training stopped there; the LoRA of step "
            f"{step - 1} is kept. Lower the learning rate, or train in float32 or bfloat16 instead of float16."
        )
        self.step, self.result = step, result


def mean_probability(log_likelihood: Tensor) -> tuple[float, ...]:
    """P(answer) per question, the mean over the samples that were asked, from log-likelihoods [B, Q]."""
    return tuple(torch.nanmean(log_likelihood.double().exp(), dim=0).tolist())
