"""What a vision-language model takes on a device while it judges; its weights need not be loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..core.sizes import ModelSize, size_up

OF_PICTURES = re.compile(r"vis(ion|ual)|projector|connector|merger")  # names of layers that see patches


def critic_size(
    model: Any, image_shapes: Mapping[str, tuple[int, ...]], tokens: int, samples: int, quantization: str | None = None
) -> ModelSize:
    """Of one call about so many pictures.

    Args:
        model: of transformers, on any device.
        image_shapes: of what the image processor makes of one picture.
        tokens: of the text model's sequence with the picture's, of one sample.
        quantization: what the weights would be in: None (as they are), "8bit" or "4bit".
    """
    patches = _patches(model.config, image_shapes) * samples

    def positions(name: str, module: nn.Module) -> int:
        if name.endswith("lm_head"):
            return 0  # only at the answer's tokens
        return patches if OF_PICTURES.search(name) else tokens * samples

    return size_up(model, positions, model.dtype, quantization)


def _patches(config: Any, image_shapes: Mapping[str, tuple[int, ...]]) -> int:
    pixels = image_shapes["pixel_values"]
    if len(pixels) == 2:  # patches, each as one row
        return pixels[0]
    side = getattr(config.vision_config, "patch_size", None) or 14
    down, across = (side, side) if isinstance(side, int) else side
    return math.prod(pixels[:-3]) * (pixels[-2] // down) * (pixels[-1] // across)
