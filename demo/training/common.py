"""What the training stages share: the run folder, logs, resumable checkpoints, a cosine schedule."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from ...core.tensor_file import read_tensors, write_tensors
from ...distillation.checkpoint import pack_optimizer, unpack_optimizer


@dataclass(frozen=True)
class Run:
    """One remake: `folder` keeps checkpoints, logs and pictures; `effort` scales every stage's number of steps."""

    folder: Path
    seed: int = 0
    effort: float = 1.0

    def steps(self, full: int) -> int:
        return max(2, round(full * self.effort))

    def generator(self, stage: str, step: int = 0) -> torch.Generator:
        """The random numbers of one step of a stage, so that a resumed run draws what an uninterrupted one would."""
        return torch.Generator().manual_seed(hash_seed(self.seed, stage, step))

    def log(self, stage: str, **values: float) -> None:
        line = {"time": time.strftime("%H:%M:%S"), **{k: float(f"{v:.5g}") for k, v in values.items()}}
        print(stage, json.dumps(line), flush=True)
        with (self.folder / f"{stage}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def picture(self, name: str, images: Tensor, columns: int = 8) -> None:
        save_image(images.clamp(0, 1), self.folder / f"{name}.png", nrow=columns)


def hash_seed(*parts: object) -> int:
    """A 56-bit seed that depends on nothing but the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


class Checkpoint:
    """Models and optimisers of a stage in one safetensors file."""

    def __init__(self, path: Path, models: dict[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.path, self.models, self.optimizers = path, models, list(optimizers)

    def save(self, step: int) -> None:
        tensors, metadata = {}, {"step": str(step)}
        for name, model in self.models.items():
            tensors |= {f"model.{name}.{k}": v.clone() for k, v in model.state_dict().items()}
        for index, optimizer in enumerate(self.optimizers):
            state, groups = pack_optimizer(optimizer)
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
            metadata[f"optimizer.{index}"] = groups
        write_tensors(self.path, tensors, metadata)

    def load(self) -> int:
        """Restores the newest state, if there is one; the number of steps already done."""
        if not self.path.exists():
            return 0
        tensors, metadata = read_tensors(self.path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for name, model in self.models.items():
            model.load_state_dict(part(f"model.{name}."))
        for index, optimizer in enumerate(self.optimizers):
            unpack_optimizer(optimizer, part(f"optimizer.{index}."), metadata[f"optimizer.{index}"])
        return int(metadata["step"])


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's rate to its initial one times a factor."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


def cosine(step: int, steps: int, warmup: int = 50, floor: float = 0.02) -> float:
    """Linear warm-up, then a half cosine from 1 to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
