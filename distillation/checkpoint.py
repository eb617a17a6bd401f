"""Checkpoints: LoRA, optimiser, history and step in one safetensors file, for bit-exact resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import LoraFileError
from ..core.tensor_file import read_tensors, write_tensors
from .anchors import Anchor
from .recipe import Recipe

LORA, OPTIMIZER = "lora.", "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot on the CPU. No random state is needed: every draw comes from (seed, step, sample index)."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def take(
        cls,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        weights: str,
        history: list[dict[str, Any]],
        anchors: Sequence[Anchor] = (),
    ) -> Checkpoint:
        state, groups = pack_optimizer(optimizer)
        tensors = {LORA + name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        tensors |= {OPTIMIZER + name: t for name, t in state.items()}
        return cls(
            tensors,
            {
                "dual_process.checkpoint": "1",
                "optimizer_groups": groups,
                "recipe": json.dumps(recipe.to_dict(), sort_keys=True),
                "base_model": weights,
                "history": json.dumps(history),
                "anchors": json.dumps([asdict(anchor) for anchor in anchors]),
            },
        )

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        """The anchors that the run has chosen, none if it needs none."""
        return tuple(Anchor(**row) for row in json.loads(self.metadata.get("anchors", "[]")))

    @property
    def steps(self) -> int:
        return len(json.loads(self.metadata["history"]))

    @property
    def recipe(self) -> Recipe:
        """The run's own, with keys that have changed since put right; its overlays stay plain data."""
        return Recipe.from_dict(json.loads(self.metadata["recipe"]))

    @property
    def train_steps(self) -> int:
        """How many steps the run was to have."""
        return json.loads(self.metadata["recipe"])["train_steps"]

    @property
    def is_unfinished(self) -> bool:
        """Whether its run has steps left that it neither made nor could do without."""
        return self.steps < self.train_steps and self.metadata.get("stop_reason") != "early_stop"

    def save(self, path: str | Path) -> Path:
        """Writes the snapshot; atomic. Raises LoraFileError if it cannot be written."""
        return write_tensors(path, self.tensors, self.metadata)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Reads a snapshot. Raises LoraFileError if the file is no checkpoint of ours."""
        tensors, metadata = read_tensors(path)
        if metadata.get("dual_process.checkpoint") != "1":
            raise LoraFileError(f"{path} is not a checkpoint. Give the .checkpoint.safetensors file of the run.")
        return cls(tensors, metadata)

    def restore(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        weights: str,
    ) -> list[dict[str, Any]]:
        """Puts the snapshot into a fresh LoRA and optimiser; the history so far.

        Raises:
            LoraFileError: it was made by another recipe or on another model, or holds more steps than the recipe
                asks for; nothing is changed then.
        """
        self._check(parameters, recipe, weights)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.tensors[LORA + name])
        state = {n.removeprefix(OPTIMIZER): t.clone() for n, t in self.tensors.items() if n.startswith(OPTIMIZER)}
        unpack_optimizer(optimizer, state, self.metadata["optimizer_groups"])
        return json.loads(self.metadata["history"])

    def _check(self, parameters: Mapping[str, nn.Parameter], recipe: Recipe, weights: str) -> None:
        then, now = self.recipe.to_dict(), json.loads(json.dumps(recipe.to_dict()))
        # More steps may be asked for than at first, as long as that does not change the steps already made.
        free = {"train_steps"} if recipe.lr_schedule == "constant" else set()
        changed = sorted(k for k in {*then, *now} - free if then.get(k) != now.get(k))
        if changed:
            raise LoraFileError(
                f"The checkpoint was made by a recipe with other {changed}. Resume with its own recipe."
            )
        if self.steps > recipe.train_steps:
            raise LoraFileError(
                f"The checkpoint holds {self.steps} steps, but the recipe asks for {recipe.train_steps}. "
                "Ask for at least as many, or start anew."
            )
        if self.metadata["base_model"] != weights:
            raise LoraFileError("The checkpoint was made on another base model. Resume with the model it started from.")
        here = {LORA + name: p.shape for name, p in parameters.items()}
        there = {name: t.shape for name, t in self.tensors.items() if name.startswith(LORA)}
        if here != there:
            raise LoraFileError("The checkpoint's LoRA does not fit this model: other modules or shapes.")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], str]:
    """A copy of an optimiser's state, on the CPU: tensors named "{parameter index}.{name}", and its groups as JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    return tensors, json.dumps(state["param_groups"])


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: str) -> None:
    """Puts back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(groups)})
