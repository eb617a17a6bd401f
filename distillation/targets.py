"""Targets: pictures that samples are to look like, such as what a slower process has made of their prompt and noise.

They are compared with the decoded picture, not with its latent: every host decodes it for the critics anyway, and a
target that the same VAE has decoded can be met exactly, while encoding it again would lose what the VAE loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.errors import RecipeError
from ..core.picture import Picture
from ..core.protocols import Draw
from .checks import check, check_integer, check_keys, is_list

MAX_SEED = 2**64 - 1  # the largest that torch, and ComfyUI's seed widget, take
MOST_BYTES = 48 * 2**20  # of all targets: as text they travel in the header of every LoRA, which holds 100 MB


@dataclass(frozen=True)
class Target:
    """A picture that samples of some prompts, and of some noises, are to look like."""

    image: Picture = field(metadata={"help": "What the picture is to look like, in the training's size."})
    mask: Picture | None = field(
        default=None, metadata={"help": "Where it counts: white counts, black is free; none = everywhere."}
    )
    prompts: tuple[int, ...] | None = field(
        default=None, metadata={"help": "Indices of the prompts that this target is for; none = all."}
    )
    seeds: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "Noise seeds that it is for: samples of its prompts are drawn from these; none = any noise."},
    )

    def __post_init__(self) -> None:
        for name in ("image", "mask"):
            value = getattr(self, name)
            if not isinstance(value, Picture) and not (name == "mask" and value is None):
                object.__setattr__(self, name, Picture.from_dict(value, RecipeError))
        for name, most in (("prompts", float("inf")), ("seeds", MAX_SEED)):
            value = getattr(self, name)
            if value is None:
                continue
            check(is_list(value) and bool(value), f"a target's {name}", "a list of whole numbers, or none", value)
            for number in value:
                check_integer(f"each of a target's {name}", number, 0, most)
            object.__setattr__(self, name, tuple(value))
        if self.mask is not None:
            shown, masked = self.image.tensor(), self.mask.tensor()
            if shown.shape != masked.shape:
                raise RecipeError(
                    f"Expected a target's mask of its picture's size, {_size(shown)}, got {_size(masked)}. Resize it."
                )
            if not masked.any():
                raise RecipeError("A target's mask is black everywhere, so that nothing counts. Paint white what does.")

    def is_for(self, prompt_index: int, noise_seed: int) -> bool:
        return (self.prompts is None or prompt_index in self.prompts) and (
            self.seeds is None or noise_seed in self.seeds
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data without None values."""
        data: dict[str, Any] = {"image": self.image.to_dict()}
        if self.mask is not None:
            data["mask"] = self.mask.to_dict()
        numbers = {"prompts": self.prompts, "seeds": self.seeds}
        return data | {name: list(value) for name, value in numbers.items() if value is not None}


@dataclass(frozen=True)
class Aims:
    """What the samples of a draw are to look like: a row for each pair of a sample and a target that is for it."""

    rows: Tensor  # [T], numbers of samples
    images: Tensor  # [T, 3, H, W] in [0, 1]
    masks: Tensor  # [T, 1, H, W] in [0, 1]

    @classmethod
    def of(cls, targets: Sequence[Target], draw: Draw, like: Tensor) -> Aims:
        """Those of a draw, whose pictures are `like` [B, 3, H, W].

        Raises:
            RecipeError: a target has another size.
        """
        samples = enumerate(zip(draw.prompt_indices, draw.noise_seeds, strict=True))
        pairs = [(row, target) for row, sample in samples for target in targets if target.is_for(*sample)]
        empty = like.new_zeros(0, 3, *like.shape[-2:])
        images, masks = [], []
        for _, target in pairs:
            image = target.image.tensor().to(like)
            if image.shape != like.shape[1:]:
                raise RecipeError(
                    f"Expected targets of the trained pictures' size, {_size(like)}, got {_size(image)}. Resize them, "
                    "or train in their size."
                )
            images.append(image)
            masks.append(torch.ones_like(image[:1]) if target.mask is None else target.mask.tensor().to(like)[:1])
        rows = torch.tensor([row for row, _ in pairs], dtype=torch.long, device=like.device)
        return cls(rows, torch.stack(images) if pairs else empty, torch.stack(masks) if pairs else empty[:, :1])


def targets_of(rows: Any) -> tuple[Target, ...]:
    """Targets of plain data.

    Raises:
        RecipeError: it has another shape or unknown keys; and as `Target`.
    """
    if not is_list(rows) or not all(isinstance(row, Mapping) and "image" in row for row in rows):
        raise RecipeError(f"Expected targets as a list of tables, each with an image, got {type(rows).__name__}.")
    for row in rows:
        check_keys("target", row, Target)
    return tuple(Target(**row) for row in rows)


def checked_targets(targets: Any) -> tuple[Target, ...]:
    """A recipe's targets.

    Raises:
        RecipeError: they are something else, or too large to travel with a LoRA.
    """
    check(is_list(targets), "targets", "a list of Target objects", targets)
    for target in targets:
        check(isinstance(target, Target), "targets", "Target objects", target)
    pictures = {picture for target in targets for picture in (target.image, target.mask) if picture is not None}
    size = sum(len(picture.png) for picture in pictures)
    if size > MOST_BYTES:
        raise RecipeError(
            f"The targets take {size / 2**20:.0f} MB, which would not fit into a LoRA's header; at most "
            f"{MOST_BYTES // 2**20} do. Take fewer, or train in a smaller size."
        )
    return tuple(targets)


def target_seeds(targets: Sequence[Target], prompt_index: int) -> tuple[int, ...]:
    """The noise seeds that a prompt's targets are for, in order; none where any noise does."""
    own = [t.seeds for t in targets if t.seeds is not None and (t.prompts is None or prompt_index in t.prompts)]
    return tuple(sorted({seed for seeds in own for seed in seeds}))


def check_targets(targets: Sequence[Target], num_prompts: int) -> None:
    """Raises RecipeError where a target is for a prompt that is not trained on."""
    for number, target in enumerate(targets, start=1):
        if target.prompts is not None and max(target.prompts) >= num_prompts:
            raise RecipeError(
                f"Target {number} is for the prompts {target.prompts}, but only 0 to {num_prompts - 1} exist."
            )


def _size(picture: Tensor) -> str:
    return f"{picture.shape[-1]} × {picture.shape[-2]}"
