"""Any picture as a visual prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ...core.errors import OverlayError
from ...core.picture import LONGEST_SIDE, as_png, as_rgba, at_most, from_base64, open_picture, read_file, to_base64
from ..layer import register
from ..parameters import check_fraction


def _decode(text: Any) -> bytes:
    return from_base64(text, OverlayError)


@register
@dataclass(frozen=True)
class ImageOverlay:
    """Any picture laid over the image, stretched to its size.

    `mode` "solid": white is transparent, everything else covers, with clean edges; "transparent": the picture
    is blended in at `opacity`. A picture's own alpha channel is respected in both.
    """

    kind: ClassVar[str] = "image"
    png: bytes = field(
        repr=False, metadata={"help": "The picture, as the bytes of a PNG file.", "write": to_base64, "read": _decode}
    )
    mode: str = field(default="solid", metadata={"help": "'solid' (white is transparent) or 'transparent' (blended)."})
    opacity: float = field(default=0.5, metadata={"help": "Opacity in transparent mode, 0 to 1."})

    def __post_init__(self) -> None:
        if self.mode not in ("solid", "transparent"):
            raise OverlayError(f"Expected the mode 'solid' or 'transparent', got {self.mode!r}.")
        check_fraction("opacity", self.opacity)
        open_picture(self.png, OverlayError)

    @classmethod
    def from_file(cls, path: str | Path, mode: str = "solid", opacity: float = 0.5) -> ImageOverlay:
        """An overlay from any picture file that Pillow reads, see `from_image`."""
        return cls.from_image(open_picture(read_file(path, OverlayError), OverlayError), mode, opacity)

    @classmethod
    def from_image(cls, image: Image.Image, mode: str = "solid", opacity: float = 0.5) -> ImageOverlay:
        """An overlay with the picture embedded as a PNG, scaled down to at most 2048 pixels on its longer side."""
        small = at_most(as_rgba(image, OverlayError), LONGEST_SIDE)
        # The bytes of a picture that is small enough stay those of earlier versions, whose checkpoints hold them.
        return cls(as_png(small, optimize=small.size != image.size), mode, opacity)

    def draw(self, height: int, width: int) -> Tensor:
        """Straight-alpha RGBA [4, H, W] in [0, 1]."""
        rgba = tv.pil_to_tensor(open_picture(self.png, OverlayError)).float() / 255
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
