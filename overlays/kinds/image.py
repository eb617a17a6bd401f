"""Any picture as a visual prompt."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ...core.errors import OverlayError
from ..layer import register
from ..parameters import check_fraction

LONGEST_SIDE = 2048  # pixels; no critic looks closer, and the picture travels in every LoRA and checkpoint


def _encode(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise OverlayError("Expected an embedded picture as base64 text, got something else.") from error


@register
@dataclass(frozen=True)
class ImageOverlay:
    """Any picture laid over the image, stretched to its size.

    `mode` "solid": white is transparent, everything else covers, with clean edges; "transparent": the picture
    is blended in at `opacity`. A picture's own alpha channel is respected in both.
    """

    kind: ClassVar[str] = "image"
    png: bytes = field(
        repr=False, metadata={"help": "The picture, as the bytes of a PNG file.", "write": _encode, "read": _decode}
    )
    mode: str = field(default="solid", metadata={"help": "'solid' (white is transparent) or 'transparent' (blended)."})
    opacity: float = field(default=0.5, metadata={"help": "Opacity in transparent mode, 0 to 1."})

    def __post_init__(self) -> None:
        if self.mode not in ("solid", "transparent"):
            raise OverlayError(f"Expected the mode 'solid' or 'transparent', got {self.mode!r}.")
        check_fraction("opacity", self.opacity)
        _open(self.png)

    @classmethod
    def from_file(cls, path: str | Path, mode: str = "solid", opacity: float = 0.5) -> ImageOverlay:
        """An overlay from any picture file that Pillow reads, see `from_image`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise OverlayError(f"Could not read the overlay picture {path}: {error}.") from error
        return cls.from_image(_open(data), mode, opacity)

    @classmethod
    def from_image(cls, image: Image.Image, mode: str = "solid", opacity: float = 0.5) -> ImageOverlay:
        """An overlay with the picture embedded as a PNG, scaled down to at most 2048 pixels on its longer side."""
        small = _at_most(_rgba(image), LONGEST_SIDE)
        buffer = io.BytesIO()
        # The bytes of a picture that is small enough stay those of earlier versions, whose checkpoints hold them.
        small.save(buffer, format="PNG", optimize=small.size != image.size)
        return cls(buffer.getvalue(), mode, opacity)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]."""
        rgba = tv.pil_to_tensor(_open(self.png)).float() / 255
        color, alpha = rgba[:3], rgba[3:]
        if self.mode == "solid":
            color, whiteness = _unmix_white(color)
            alpha = alpha * (1 - whiteness)
        else:
            alpha = alpha * self.opacity
        # Resized premultiplied, so that hidden colours do not bleed over the edges.
        resized = tv.resize(torch.cat([color * alpha, alpha]), [height, width], antialias=True).clamp(0, 1)
        return torch.cat([resized[:3] / resized[3:].clamp(min=1e-6), resized[3:]]).clamp(0, 1)

    def questions(self) -> tuple[str, ...]:
        """Wordings for a picture with instructions; those of any other use are the user's own."""
        return (
            "Does the composition of the image match the overlaid instructions?",
            "Is the image composed as the overlaid drawing says?",
            "Does the image follow the instructions that are drawn on it?",
        )

    def guards(self) -> tuple[str, ...]:
        return ("Is the image free of written words, labels and marks drawn over it?",)


def _unmix_white(color: Tensor) -> tuple[Tensor, Tensor]:
    """Splits pixels [3, H, W] of an antialiased drawing on white into ink colour and share of white [1, H, W].

    A pixel p on an edge is ink · a + white · (1 − a). The ink is the strongest colour nearby on the line from white
    through p, so a = (1 − p) / (1 − ink) by the channel in which they differ the most; inside a shape a is 1.
    """
    strength = (1 - color).amax(dim=0, keepdim=True)  # 0 white … 1 no white left in some channel
    strongest = torch.nn.functional.max_pool2d(strength[None], 5, stride=1, padding=2)[0]
    covered = torch.where(strength > 0.02, strength / strongest.clamp(min=1e-6), torch.zeros_like(strength))
    ink = 1 - (1 - color) / covered.clamp(min=1e-6)
    return torch.where(covered > 0, ink, color).clamp(0, 1), 1 - covered


def _open(png: bytes) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(png)))  # photographs upright
        image.load()
    except (UnidentifiedImageError, OSError, TypeError) as error:
        raise OverlayError("Expected an overlay picture that Pillow can read (PNG, JPEG …), got other data.") from error
    return _rgba(image)


def _rgba(image: Image.Image) -> Image.Image:
    """8 bits a channel. Pillow's own conversion clips greyscale of 16 bits to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise OverlayError("Expected an overlay picture of 8 or 16 bits, got floating point. Convert it first.")
    return image.convert("RGBA")


def _at_most(image: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side at most `longest` pixels, in the same proportions."""
    if max(image.size) <= longest:
        return image
    width, height = (max(1, round(side * longest / max(image.size))) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA while it resizes
