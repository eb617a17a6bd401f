"""Where on a canvas a stroke may paint, by whole tokens of 16 × 16 pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import GeneratorError
from ..process.states import Region, Stroke

TOKEN = 16  # pixels along a side: the least that the latents of all common models change on their own
REACHED = 0.5  # share of a mask's token from which it counts


def tokens_of(region: Region, rows: int, columns: int, grow: float = 0.0) -> Tensor:
    """[rows, columns] bool: a region, widened by `grow` tokens on every side and snapped to the nearest tokens.

    At least one token in each direction, so that no region is empty.
    """
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    top, bottom = _snapped(region.top * rows - grow, region.bottom * rows + grow, rows)
    left, right = _snapped(region.left * columns - grow, region.right * columns + grow, columns)
    inside[top:bottom, left:right] = True
    return inside


def _snapped(first: float, last: float, count: int) -> tuple[int, int]:
    start = min(max(round(first), 0), count - 1)
    return start, max(min(round(last), count), start + 1)


def tokens_of_mask(mask: Tensor, height: int, width: int, token: int = TOKEN) -> Tensor:
    """[height / token, width / token] bool: what a mask [H, W] or [1, H, W] in [0, 1] covers at least by half.

    Raises:
        GeneratorError: several masks, one of another size than height × width, or one that covers no token.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if tuple(mask.shape) != (1, height, width):
        raise GeneratorError(
            f"Expected one mask of the canvas's size, {height} × {width}, got {list(mask.shape)}. Scale it to that."
        )
    inside = F.avg_pool2d(mask.float().cpu()[None], token)[0, 0] >= REACHED
    if not inside.any():
        raise GeneratorError(
            f"The mask is empty: it covers no square of {token} pixels at least by half. Paint where strokes may work."
        )
    return inside


def place_of(stroke: Stroke, rows: int, columns: int, grow: float = 0.0, mask: Tensor | None = None) -> Tensor | None:
    """[rows, columns] bool: where a stroke may paint, within the mask's tokens; None where it may everywhere.

    Raises:
        GeneratorError: the stroke's region lies outside the mask.
    """
    if stroke.region is None:
        return mask
    inside = tokens_of(stroke.region, rows, columns, grow)
    if mask is None:
        return inside
    if not (inside & mask).any():
        raise GeneratorError(f"The region of the stroke {stroke.id} lies outside the mask: move it, or widen the mask.")
    return inside & mask


def check_prompt(prompt: str, what: str = "prompt") -> str:
    """The prompt without space around it. Raises GeneratorError where nothing is left."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise GeneratorError(f"The {what} is empty: say what is to be painted.")
    return prompt.strip()


def check_size(height: int, width: int, token: int = TOKEN) -> None:
    """Raises GeneratorError unless both are positive multiples of a token's pixels."""
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < token or value % token:
            raise GeneratorError(f"Expected a {name} that is a multiple of {token} pixels, got {value!r}.")
