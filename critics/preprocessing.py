"""Images on their way to the model: checked, put through the model's own image processor, repeated per question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import CriticError
from ..core.picture import Picture

CACHED_REFERENCES = 32
SLACK = 1e-3  # how far rounding may push a value out of [0, 1]
# Options by which families cut an image into several tiles. One tile an image keeps prompts short and costs low.
TILING_OPTIONS = ("do_image_splitting", "do_pan_and_scan", "crop_to_patches")


def single_tile(image_processor: Any) -> dict[str, bool]:
    """The options that switch off tiling, of those that this image processor has."""
    return {name: False for name in TILING_OPTIONS if hasattr(image_processor, name)}


def check_images(images: Tensor) -> None:
    """Raises CriticError unless `images` is a float tensor [B, 3, H, W] with values in [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        came = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise CriticError(f"Expected images as a tensor of shape [B, 3, H, W], none of them zero, got {came}.")
    if not images.is_floating_point():
        raise CriticError(f"Expected images of a float dtype with values in [0, 1], got {images.dtype}: divide by 255.")
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()  # the device is waited for once
    if not (low >= -SLACK and high <= 1 + SLACK):  # so written that NaN fails too
        raise CriticError(f"Expected images with values in [0, 1], got {low:.4g} to {high:.4g}: clamp or rescale them.")


def check_max_size(max_size: object) -> None:
    """Raises CriticError unless it is None or a whole number of at least 1."""
    if max_size is not None and (isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1):
        raise CriticError(f"Expected max_size as None or a whole number of pixels of at least 1, got {max_size!r}.")


def shrunk(images: Tensor, max_size: int | None) -> Tensor:
    """Images [B, 3, H, W], those of more than `max_size` squared pixels resized to it; keeps gradient and proportions.

    Antialiased bicubic, as most image processors resize.
    """
    height, width = images.shape[-2:]
    if max_size is None or height * width <= max_size**2:
        return images
    scale = max_size / math.sqrt(height * width)
    size = [max(1, round(side * scale)) for side in (height, width)]
    return F.interpolate(images.float(), size, mode="bicubic", antialias=True)


def take_small_images(image_processor: Any, max_size: int) -> None:
    """Lets the image processor leave pictures of `max_size` squared small, where it has a least area of its own (Qwen).

    Raises:
        CriticError: it makes them as large as others, so that nothing would be saved.
    """
    if _is_seen_smaller(image_processor, max_size):
        return
    size: Any = getattr(image_processor, "size", None)
    least = size.get("shortest_edge") if hasattr(image_processor, "merge_size") and size else None  # an area
    if least is not None:
        # A quarter, since sides are rounded to whole patches.
        image_processor.size = type(size)(**{**dict(size), "shortest_edge": min(least, max_size**2 // 4)})
        if _is_seen_smaller(image_processor, max_size):
            return
    raise CriticError(
        f"Expected a critic that sees pictures of {max_size} × {max_size} pixels smaller than others, but its "
        f"{type(image_processor).__name__} gives them the same size: nothing would be saved. Leave max_size out, or "
        "choose a smaller one."
    )


def _is_seen_smaller(image_processor: Any, max_size: int) -> bool:
    small, large = (
        preprocess(image_processor, torch.zeros(1, 3, side, side))["pixel_values"].numel()
        for side in (max_size, 2 * max_size)
    )
    return small < large


@lru_cache(maxsize=CACHED_REFERENCES)
def reference(picture: Picture, max_size: int | None) -> Tensor:
    """A reference as the critic sees it, [3, h, w] in [0, 1], shrunk as judged images are."""
    return shrunk(picture.tensor()[None], max_size)[0].clamp(0, 1)


def preprocess(image_processor: Any, images: Tensor, references: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Runs the model's own resizing, normalising and patching on images [B, 3, H, W]; keeps the gradient.

    Behind each image come the references, [3, h, w] each.
    """
    beside = [one.to(images.device) for one in references]
    # One list per image: the nesting that every family takes to mean "B samples of so many images".
    rows = [[image, *beside] for image in images.float()]
    options = single_tile(image_processor)
    return dict(image_processor(images=rows, do_rescale=False, return_tensors="pt", **options))


def keeps_gradient(image_processor: Any) -> bool:
    """Whether the image processor works on tensors; those made for Pillow and numpy have no gradient."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            probe = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
            pixels = preprocess(image_processor, probe)["pixel_values"]
    except (RuntimeError, TypeError, ValueError):  # numpy refuses tensors that require gradients
        return False
    return isinstance(pixels, Tensor) and pixels.requires_grad


def check_shapes(values: dict[str, Any], expected: dict[str, tuple[int, ...]], count: int) -> None:
    """Raises CriticError unless `values` for `count` samples fit what the whole processor makes of one."""
    for name, (rows, *rest) in expected.items():
        shape = [count * rows, *rest]
        if not isinstance(values.get(name), Tensor) or list(values[name].shape) != shape:
            came = list(values[name].shape) if isinstance(values.get(name), Tensor) else type(values.get(name)).__name__
            raise CriticError(
                f"Expected {name} of shape {shape} from the critic's image processor, got {came}. "
                "This model family prepares its images in a way that the critic does not know; choose another model."
            )


def repeat_each(value: Tensor, count: int, times: int) -> Tensor:
    """Repeats each image's share of `value` [count · n, …], giving [count · times · n, …] with repeats side by side."""
    if times == 1:
        return value
    return value.unflatten(0, (count, -1)).repeat_interleave(times, dim=0).flatten(0, 1)


def place(values: dict[str, Any], names: Sequence[str], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The named tensors on the model's device, floats in the model's dtype; both within the graph."""
    return {name: _place(values[name], device, dtype) for name in names}


def _place(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)
