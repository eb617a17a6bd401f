# pyright: reportMissingImports=false
"""A MODEL, CLIP and VAE of ComfyUI as a `Painter`: everything is sampled by ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...core.protocols import ModelInfo
from ...process.protocols import Canvas
from ...process.states import Stroke

INPAINT, REFERENCE, QWEN_EDIT = MODES = ("inpaint", "reference", "qwen edit")
SamplerCallback = Callable[[int, Tensor, Tensor, int], Any]  # step, clean estimate, sample, number of steps


class ComfyPainter:
    """Drafts and changes pictures as ComfyUI's own nodes would. Nothing of the user's is changed or copied.

    A canvas carries a latent as KSampler gives it, [1, C, h, w] or [1, C, 1, h, w], on the CPU. Use it where nodes run,
    in inference mode; an interrupt is raised as in any node.

    Args:
        model, clip, vae: as loader nodes hand them on, with whatever LoRAs and patches the user has applied.
        mode: how a stroke is made. "inpaint", with any MODEL: its region is sampled anew from `local_prompt`, by a
            noise mask, and by the masked picture where the MODEL is an inpaint model (Flux Fill). "reference": the
            canvas is the reference latent beside the instruction (Flux Kontext, FLUX.2). "qwen edit": the canvas is
            shown to CLIP as a picture, too (Qwen-Image-Edit).
        width, height: of drafts, in pixels; multiples of 16.
        steps, cfg, sampler_name, scheduler: as in KSampler.
        negative: negative prompt, for a cfg other than 1.
        grow: pixels by which a region is widened on every side before it is snapped to 16 pixels.
        guidance: of distilled models such as Flux, as the FluxGuidance node sets it; None is the MODEL's own.
        denoise: share of the sampler's noise from which "inpaint" samples a region; 1 paints it anew.
        denoise_whole: the same where a stroke has no region: below 1, or nothing of the canvas would be left.
        mask: MASK [H, W] or [1, H, W] in [0, 1] of the drafts' size: no stroke changes anything outside of it.
        callback: called at each step of the sampler; None shows progress and preview as KSampler does.

    Raises:
        GeneratorError: the parts do not fit each other or the mode, a setting is out of range, or the mask is empty or
            of another size; the message says which and what to change.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        mode: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        negative: str = "",
        grow: int = 0,
        *,
        guidance: float | None = None,
        denoise: float = 1.0,
        denoise_whole: float = 0.6,
        mask: Tensor | None = None,
        callback: SamplerCallback | None = None,
    ) -> None:
        self.model, self.clip, self.vae, self.mode = model, clip, vae, mode

    @property
    def info(self) -> ModelInfo:
        """Name of the MODEL's file, architecture, dtype, a hash of its base weights, and the settings; cached."""
        raise NotImplementedError

    @property
    def keeps_outside(self) -> bool:
        """True: outside a stroke's region the latent stays bit-equal."""
        return True

    def draft(self, prompt: str, seed: int) -> Canvas:
        """A picture of a prompt, from an empty latent.

        Raises:
            GeneratorError: the prompt is empty.
        """
        raise NotImplementedError

    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        """The canvas with a stroke carried out, in its region if it has one.

        Raises:
            GeneratorError: the stroke says nothing, its region lies outside the mask, or the canvas is not one of this
                MODEL.
        """
        raise NotImplementedError

    def canvas_of_latent(self, latent: Mapping[str, Any]) -> Canvas:
        """A canvas of a LATENT of one picture, to paint on.

        Raises:
            GeneratorError: several pictures, a video, or another number of channels than the MODEL's.
        """
        raise NotImplementedError

    def canvas_of_picture(self, picture: Tensor) -> Canvas:
        """A canvas of a picture [1, 3, H, W] in [0, 1], encoded once; its sides are cut to multiples of 16.

        Raises:
            GeneratorError: several pictures, or one that is too small.
        """
        raise NotImplementedError
