"""Whether the pictures survived: measures of what a person sees, against pictures that are known to be true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from .measures import (
    high_frequency_energy,
    object_presence,
    outline_energy,
    region_color_error,
    row_unevenness,
    seed_diversity,
)

VISIBLE = 1 / 255  # a pixel is the object's where the object changes it by more than this
MARGIN = 4  # pixels around an object that may be its soft edge


@dataclass(frozen=True)
class Truth:
    """True pictures of B pairs and their parts. Pictures are [B, 3, H, W] in [0, 1]."""

    images: Tensor
    bare: Tensor  # the same scenes without their objects
    sky: Tensor  # [B, H, W], bool: the rows above the horizon, behind an object too

    def __post_init__(self) -> None:
        if self.images.shape != self.bare.shape or self.sky.shape != self.images[:, 0].shape:
            raise ValueError(
                f"Expected pictures of one shape [B, 3, H, W] and sky [B, H, W], got {tuple(self.images.shape)}, "
                f"{tuple(self.bare.shape)} and {tuple(self.sky.shape)}."
            )

    @property
    def object(self) -> Tensor:
        """The objects' pixels, [B, H, W], bool."""
        return (self.images - self.bare).abs().amax(dim=1) > VISIBLE

    @property
    def smooth(self) -> Tensor:
        """Sky and ground at some distance from objects, [B, H, W], bool."""
        return F.max_pool2d(self.object.float()[:, None], 2 * MARGIN + 1, stride=1, padding=MARGIN)[:, 0] == 0


def against_truth(images: Tensor, truth: Truth, prompts: Sequence[str]) -> dict[str, float]:
    """Pictures of B pairs against the true pictures of the same pairs; means over those that tell something.

    Returns:
        object_presence: share of the objects' contrast, in [0, 1]. sky_color_error, ground_color_error: CIEDE2000 of
        the mean colours, objects left out. unevenness: how much colours differ along rows of sky and ground, in
        CIELAB; 0 in the true pictures. sharpness, diversity: energy of high frequencies, and distance between
        seeds of one prompt, as shares of the true pictures' own; 1 is right. What these pairs cannot tell (no object
        among them, no prompt twice) is left out.
    """
    sky, ground = truth.sky & ~truth.object, ~truth.sky & ~truth.object
    presence = object_presence(images, truth.images, truth.bare)
    return {
        **_mean("object_presence", presence, truth.object),
        **_mean("sky_color_error", region_color_error(images, truth.images, sky), sky),
        **_mean("ground_color_error", region_color_error(images, truth.images, ground), ground),
        **_mean("unevenness", row_unevenness(images, truth.smooth), truth.smooth),
        **_texture(images, truth.images, prompts),
    }


def against_base(images: Tensor, base: Tensor, own: Truth, prompts: Sequence[str]) -> dict[str, float]:
    """Pictures of B pairs whose true look is not known against the base model's pictures of the same pairs.

    Returns:
        object_presence: energy of the outlines in the pixels of the base scene's object (`own`), as a share of the
        base picture's, each clipped to [0, 1]. unevenness: as in `against_truth`. sharpness, diversity: as there, as
        shares of the base pictures'.
    """
    share = outline_energy(images, own.object) / outline_energy(base, own.object)
    return {
        **_mean("object_presence", share.nan_to_num().clamp(0, 1), own.object),
        **_mean("unevenness", row_unevenness(images, own.smooth), own.smooth),
        **_texture(images, base, prompts),
    }


def _mean(name: str, values: Tensor, region: Tensor) -> dict[str, float]:
    """The mean of values [B] over the pictures whose region [B, H, W] is not empty; nothing if there is none."""
    there = region.any(dim=2).any(dim=1)
    return {name: float(values[there].mean())} if there.any() else {}


def _texture(images: Tensor, references: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Sharpness and diversity as shares of the references'; no diversity where no prompt comes twice."""
    sharpness = float(high_frequency_energy(images).mean() / high_frequency_energy(references).mean())
    wanted = seed_diversity(references, prompts)
    diversity = {"diversity": seed_diversity(images, prompts) / wanted} if wanted > 0 else {}
    return {"sharpness": sharpness, **diversity}
