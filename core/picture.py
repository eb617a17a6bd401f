"""Pictures as part of what is written down: embedded as PNG, read upright and in 8 bits a channel."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

LONGEST_SIDE = 2048  # pixels; no critic looks closer, and the picture travels in every LoRA and checkpoint
PNG, FILE = "png", "file"  # keys of a picture's plain data
_Error = type[Exception]


@dataclass(frozen=True)
class Picture:
    """A picture as a question carries it beside the one that is judged.

    Attributes:
        png: the bytes of a PNG file.
    """

    png: bytes = field(repr=False)

    @classmethod
    def from_file(cls, path: str | Path, error: _Error = ValueError) -> Picture:
        """Any picture file that Pillow reads, see `from_image`. Raises `error` where it reads none."""
        return cls.from_image(open_picture(read_file(path, error), error), error)

    @classmethod
    def from_image(cls, image: Image.Image, error: _Error = ValueError) -> Picture:
        """The picture on white where it is transparent, at most 2048 pixels on its longer side."""
        whole = as_rgba(image, error)
        on_white = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole)
        return cls(as_png(at_most(on_white.convert("RGB"), LONGEST_SIDE)))

    @classmethod
    def from_tensor(cls, image: Tensor) -> Picture:
        """A picture [3, H, W], or grey [1, H, W], in [0, 1]."""
        pixels = (image.expand(3, -1, -1).detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        return cls.from_image(Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()))

    @classmethod
    def from_dict(cls, data: Any, error: _Error = ValueError) -> Picture:
        """From what `to_dict` gives, or a mapping with the path of a `file`.

        Raises:
            Exception: `error`, of other data or a file that cannot be read.
        """
        keys = set(data) if isinstance(data, Mapping) else set()
        if keys == {FILE}:
            return cls.from_file(data[FILE], error)
        if keys != {PNG}:
            raise error(f"Expected a picture as {{file = …}} or {{png = …}}, got {type(data).__name__} with {[*keys]}.")
        return cls.from_image(open_picture(from_base64(data[PNG], error), error), error)

    def to_dict(self) -> dict[str, str]:
        return {PNG: to_base64(self.png)}

    def tensor(self) -> Tensor:
        """[3, H, W], float32 in [0, 1]."""
        with Image.open(io.BytesIO(self.png)) as image:
            return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def to_base64(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def from_base64(text: Any, error: _Error) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as cause:
        raise error("Expected an embedded picture as base64 text, got something else.") from cause


def read_file(path: str | Path, error: _Error) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as cause:
        raise error(f"Could not read the picture {path}: {cause}.") from cause


def open_picture(data: bytes, error: _Error) -> Image.Image:
    """A picture file's content as RGBA of 8 bits, photographs upright."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        image.load()
    except (UnidentifiedImageError, OSError, TypeError) as cause:
        raise error("Expected a picture that Pillow can read (PNG, JPEG …), got other data.") from cause
    return as_rgba(image, error)


def as_rgba(image: Image.Image, error: _Error) -> Image.Image:
    """8 bits a channel. Pillow's own conversion clips greyscale of 16 bits to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise error("Expected a picture of 8 or 16 bits, got floating point. Convert it first.")
    return image.convert("RGBA")


def at_most(image: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side at most `longest` pixels, in the same proportions."""
    if max(image.size) <= longest:
        return image
    width, height = (max(1, round(side * longest / max(image.size))) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)  # Pillow premultiplies RGBA while it resizes


def as_png(image: Image.Image, optimize: bool = False) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=optimize)
    return buffer.getvalue()
