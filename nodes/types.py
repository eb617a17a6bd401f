"""Socket types of the pack, and conversions between ComfyUI's tensors and the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

CATEGORY = "dual process"

Critic = io.Custom("DUAL_PROCESS_CRITIC")
Question = io.Custom("DUAL_PROCESS_QUESTION")  # a tuple of questions
Overlay = io.Custom("DUAL_PROCESS_OVERLAY")
Loss = io.Custom("DUAL_PROCESS_LOSS")
Prompts = io.Custom("DUAL_PROCESS_PROMPTS")
Checkpoint = io.Custom("DUAL_PROCESS_CHECKPOINT")
Painter = io.Custom("DUAL_PROCESS_PAINTER")
Plan = io.Custom("DUAL_PROCESS_PLAN")
Trajectory = io.Custom("DUAL_PROCESS_TRAJECTORY")  # a `process.Painting`


@dataclass(frozen=True)
class VqaTerms:
    """What travels on a LOSS wire: critics, each with the questions it is asked, and pictures to come near to."""

    terms: tuple[tuple[Any, tuple[Any, ...]], ...]  # (critic, questions)
    targets: tuple[Any, ...] = ()  # distillation.Target
    target_weight: float = 0.0


@dataclass(frozen=True)
class PromptSet:
    """What travels on a PROMPTS wire: encoded prompts, those to train on and those that are kept back."""

    conditionings: tuple[Any, ...]
    texts: tuple[str, ...] | None  # of the conditionings, None where not known
    held_out_conditionings: tuple[Any, ...] = ()
    held_out_texts: tuple[str, ...] = ()  # always known

    def after(self, other: PromptSet | None) -> PromptSet:
        """The prompts of `other` and then these; texts are known only if both are."""
        if other is None:
            return self
        known = self.texts is not None and other.texts is not None
        return PromptSet(
            (*other.conditionings, *self.conditionings),
            (*(other.texts or ()), *(self.texts or ())) if known else None,
            (*other.held_out_conditionings, *self.held_out_conditionings),
            (*other.held_out_texts, *self.held_out_texts),
        )


@contextmanager
def outside_inference_mode(grad: bool = False) -> Iterator[None]:
    """ComfyUI runs nodes in inference mode; what is made or cached inside may take part in training later."""
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


def to_engine(image: Tensor) -> Tensor:
    """IMAGE [B, H, W, C] -> pictures [B, 3, H, W] in [0, 1]; alpha is dropped."""
    with outside_inference_mode():
        return image.clone()[..., :3].movedim(-1, 1).float().clamp(0, 1).contiguous()


def to_comfy(pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] -> IMAGE [B, H, W, 3] in [0, 1] on the CPU."""
    return pictures.detach().movedim(1, -1).float().clamp(0, 1).cpu().contiguous()
