# pyright: reportMissingImports=false
"""ComfyUI's VAE as a function from latents to pixels that autograd can follow."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core.errors import GeneratorError
from .inputs import output_map


class Decoder:
    """Latents [B, C, h, w] of a MODEL -> images [B, 3, H, W], float32, unclamped.

    Args:
        model: ModelPatcher whose latents they are.
        vae: loaded when it is called.
        factor: pixels that it has to make of a latent pixel and side; None takes whatever comes.

    Raises:
        GeneratorError: the VAE makes its pixels otherwise than by scaling, shifting and clamping; when it is called,
            pictures of another size.
    """

    def __init__(self, model: Any, vae: Any, factor: int | None = None) -> None:
        self._model, self._vae, self._factor = model, vae, factor
        self._scale, self._shift = output_map(vae)

    def __call__(self, clean: Tensor) -> Tensor:
        latents, vae = self._model.model.process_latent_out(clean), self._vae
        image = vae.first_stage_model.decode(latents.to(vae.device, vae.vae_dtype)).float().to(clean.device)
        if image.ndim == 5:  # video VAEs; one frame
            image = image[:, :, 0]
        self._check_size(clean, image)
        return image[:, :3] * self._scale + self._shift  # for most VAEs [-1, 1] -> [0, 1]

    def _check_size(self, clean: Tensor, image: Tensor) -> None:
        (height, width), (h, w) = image.shape[-2:], clean.shape[-2:]
        if self._factor is not None and (height, width) != (h * self._factor, w * self._factor):
            raise GeneratorError(
                f"Expected a gradient_vae that makes pictures of {w * self._factor} × {h * self._factor} pixels, as "
                f"the VAE does, got {width} × {height}. Load the tiny one of the MODEL's family, such as taef1 for "
                "Flux."
            )
