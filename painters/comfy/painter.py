# pyright: reportMissingImports=false
"""A MODEL, CLIP and VAE of ComfyUI as a `Painter`: everything is sampled by ComfyUI's own sampler."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...comfy_host.models import base_weights, check_vae, file_name, pixels_per_latent
from ...core.errors import GeneratorError
from ...core.fingerprint import weights_sha256
from ...core.protocols import ModelInfo
from ...process.protocols import Canvas
from ...process.states import Stroke
from ..regions import TOKEN, check_prompt, check_size, place_of, tokens_of_mask
from .conditioning import (
    GREY,
    check_sees_pictures,
    check_takes_references,
    encoded,
    encoded_with_picture,
    masked_picture,
    takes_masked_picture,
    with_reference,
    with_values,
)

INPAINT, REFERENCE, QWEN_EDIT, QWEN_EDIT_PLUS = MODES = ("inpaint", "reference", "qwen edit", "qwen edit plus")
SamplerCallback = Callable[[int, Tensor, Tensor, int], Any]  # step, clean estimate, sample, number of steps


class ComfyPainter:
    """Drafts and changes pictures as ComfyUI's own nodes would. Nothing of the user's is changed or copied.

    A canvas carries a latent as KSampler gives it, [1, C, h, w] or [1, C, 1, h, w], on the CPU. Use it where nodes run;
    an interrupt is raised as in any node.

    Args:
        model, clip, vae: as loader nodes hand them on, with whatever LoRAs and patches the user has applied.
        mode: how a stroke is made. "inpaint", with any MODEL: its region is sampled anew from `local_prompt`, by a
            noise mask, and by the masked picture where the MODEL is an inpaint model (Flux Fill). "reference": the
            canvas is the reference latent beside the instruction (Flux Kontext, FLUX.2). "qwen edit": the canvas is
            shown to CLIP as a picture, too (Qwen-Image-Edit); "qwen edit plus" for its versions from 2509 on. With a
            region these, too, change nothing outside of it.
        width, height: of drafts, in pixels; multiples of 16.
        steps, cfg, sampler_name, scheduler: as in KSampler.
        negative: negative prompt, for a cfg other than 1.
        grow: pixels by which a region is widened on every side before it is snapped to 16 pixels; what is painted there
            lies outside the region for whoever inspects it.
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
        self.width, self.height, self.steps, self.cfg = width, height, steps, cfg
        self.sampler_name, self.scheduler, self.negative, self.grow = sampler_name, scheduler, negative, grow
        self.guidance, self.denoise, self.denoise_whole = guidance, denoise, denoise_whole
        self.mask, self.callback = mask, callback
        self._check_settings()
        if clip is None:
            raise GeneratorError("Expected a CLIP, but there is none: the checkpoint has no text encoder. Load one.")
        check_vae(model, vae)
        self._format = model.get_model_object("latent_format")
        self._pixels = pixels_per_latent(model, vae)
        self._token = max(TOKEN, self._pixels)
        check_size(height, width, self._token)
        self._mask = "" if mask is None else _digest(tokens_of_mask(mask, height, width, self._token))
        empty = self._empty()
        self._fills = takes_masked_picture(model, empty)
        if mode != INPAINT:
            check_takes_references(model, empty)
        if mode in (QWEN_EDIT, QWEN_EDIT_PLUS):
            check_sees_pictures(model, clip)
        self._info: ModelInfo | None = None

    def _check_settings(self) -> None:
        chosen = (
            ("mode", MODES, self.mode),
            ("sampler", comfy.samplers.KSampler.SAMPLERS, self.sampler_name),
            ("scheduler", comfy.samplers.KSampler.SCHEDULERS, self.scheduler),
        )
        for name, known, value in chosen:  # KSampler takes another one in silence
            if value not in known:
                raise GeneratorError(f"Expected as {name} one of {', '.join(known)}, got {value!r}.")
        for name, least, value in (("steps", 1, self.steps), ("grow", 0, self.grow)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise GeneratorError(f"Expected {name} of at least {least}, got {value!r}.")
        for name, value in (("denoise", self.denoise), ("denoise_whole", self.denoise_whole)):
            if not 0 < value <= 1:
                raise GeneratorError(f"Expected {name} above 0 and at most 1, got {value!r}.")
        if not math.isfinite(self.cfg) or self.cfg < 0:
            raise GeneratorError(f"Expected a cfg of at least 0, got {self.cfg!r}.")

    @property
    def info(self) -> ModelInfo:
        """Name of the MODEL's file, its class, dtype, a hash of its base weights, and the settings; cached."""
        if self._info is None:
            dtype = str(self.model.model_dtype()).removeprefix("torch.")
            digest = weights_sha256(base_weights(self.model))
            names = ("mode", "width", "height", "steps", "cfg", "sampler_name", "scheduler", "negative", "grow")
            names += ("guidance", "denoise", "denoise_whole")
            told = {name: getattr(self, name) for name in names} | {"mask": self._mask}
            settings = ", ".join(f"{name} {value}" for name, value in told.items() if value not in ("", None))
            self._info = ModelInfo(
                file_name(self.model), type(self.model.model).__name__.lower(), dtype, digest, settings
            )
        return self._info

    @property
    def keeps_outside(self) -> bool:
        """True: outside a stroke's region the latent stays bit-equal."""
        return True

    @torch.inference_mode()
    def draft(self, prompt: str, seed: int) -> Canvas:
        """A picture of a prompt, from an empty latent.

        Raises:
            GeneratorError: the prompt is empty.
        """
        prompt, empty = check_prompt(prompt), self._empty()
        beside = self._beside(torch.full((1, 3, self.height, self.width), GREY), None, empty)
        prompts = [with_values(encoded(self.clip, text), **beside) for text in self._texts(prompt)]
        return self._canvas(self._sampled(prompts, empty, seed))

    @torch.inference_mode()
    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        """The canvas with a stroke carried out, in its region if it has one.

        Raises:
            GeneratorError: the stroke says nothing, its region lies outside the mask, or the canvas is not one of this
                MODEL.
        """
        latent = self._checked(canvas.latent)
        inside = self._inside(stroke, latent)
        if self.mode == INPAINT:
            prompt = check_prompt(stroke.local_prompt or stroke.instruction, "stroke's prompt")
            beside = self._beside(canvas.picture, inside, latent)
            prompts = [with_values(encoded(self.clip, text), **beside) for text in self._texts(prompt)]
            share = self.denoise_whole if inside is None else self.denoise
            return self._canvas(self._sampled(prompts, latent, seed, inside, share))
        instruction = check_prompt(stroke.instruction, "stroke's instruction")
        prompts = [with_reference(self._told(text, canvas.picture), latent) for text in self._texts(instruction)]
        return self._canvas(self._sampled(prompts, latent, seed, inside))

    @torch.inference_mode()
    def canvas_of_latent(self, latent: Mapping[str, Any]) -> Canvas:
        """A canvas of a LATENT of one picture, to paint on.

        Raises:
            GeneratorError: several pictures, a video, or another number of channels than the MODEL's.
        """
        samples = latent["samples"]
        if isinstance(samples, Tensor) and samples.ndim == 4 and self._format.latent_dimensions == 3:
            samples = samples.unsqueeze(2)
        return self._canvas(self._checked(samples))

    @torch.inference_mode()
    def canvas_of_picture(self, picture: Tensor) -> Canvas:
        """A canvas of a picture [1, 3, H, W] in [0, 1], encoded once; its sides are cut to multiples of 16.

        Raises:
            GeneratorError: several pictures, or one that is too small.
        """
        if picture.ndim != 4 or picture.shape[:2] != (1, 3):
            raise GeneratorError(f"Expected one picture [1, 3, H, W], got {list(picture.shape)}. Choose one of them.")
        height, width = (side // self._token * self._token for side in picture.shape[-2:])
        if not height or not width:
            raise GeneratorError(
                f"Expected a picture of at least {self._token} pixels on each side, got {list(picture.shape[-2:])}."
            )
        pixels = picture[..., :height, :width].movedim(1, -1)  # BCHW -> BHWC
        return self.canvas_of_latent({"samples": self.vae.encode(pixels)})

    # What is told

    def _texts(self, prompt: str) -> tuple[str, ...]:
        """The prompt, and the negative one where it counts."""
        return (prompt,) if self.cfg == 1 else (prompt, self.negative)

    def _told(self, text: str, picture: Tensor) -> Any:
        if self.mode == REFERENCE:
            return encoded(self.clip, text)
        return encoded_with_picture(self.clip, text, picture, plus=self.mode == QWEN_EDIT_PLUS)

    def _beside(self, picture: Tensor, inside: Tensor | None, latent: Tensor) -> dict[str, Tensor]:
        """What an inpaint model sees beside the latent; others nothing."""
        if not self._fills:
            return {}
        mask = torch.ones_like(latent[:1, :1]) if inside is None else inside.float()
        return masked_picture(self.vae, picture, _larger(mask, self._pixels))

    # How it is sampled

    def _empty(self) -> Tensor:
        sides = (self.height // self._pixels, self.width // self._pixels)
        latent = torch.zeros(1, self._format.latent_channels, *sides)
        return comfy.sample.fix_empty_latent_channels(self.model, latent)  # with a time where the MODEL has one

    def _inside(self, stroke: Stroke, latent: Tensor) -> Tensor | None:
        """[1, 1, h, w] bool: where a stroke may paint; None where it may everywhere."""
        height, width = (side * self._pixels for side in latent.shape[-2:])
        mask = None if self.mask is None else tokens_of_mask(self.mask, height, width, self._token)
        rows, columns = height // self._token, width // self._token
        place = place_of(stroke, rows, columns, self.grow / self._token, mask)
        return None if place is None else _larger(place[None, None], self._token // self._pixels)

    def _sampled(
        self, prompts: list[Any], latent: Tensor, seed: int, inside: Tensor | None = None, denoise: float = 1.0
    ) -> Tensor:
        """What the sampler makes of a latent; outside of `inside` the very numbers that were there."""
        if self.guidance is not None:
            prompts = [with_values(prompt, guidance=self.guidance) for prompt in prompts]
        samples = comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(latent, seed),
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            prompts[0],
            prompts[-1],
            latent,
            denoise=denoise,
            noise_mask=None if inside is None else inside.float(),
            callback=self.callback or latent_preview.prepare_callback(self.model, self.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        ).cpu()
        if inside is None:
            return samples
        return torch.where(inside if latent.ndim == 4 else inside.unsqueeze(2), samples, latent)

    def _canvas(self, latent: Tensor) -> Canvas:
        images = self.vae.decode(latent)  # [1, H, W, 3], or [1, 1, H, W, 3]
        picture = images.reshape(-1, *images.shape[-3:])[:1, ..., :3].movedim(-1, 1)  # BHWC -> BCHW
        return Canvas(latent, picture.float().clamp(0, 1).cpu())

    def _checked(self, latent: Any) -> Tensor:
        channels, step = self._format.latent_channels, self._token // self._pixels
        frames = (1,) * (self._format.latent_dimensions == 3)
        shape = tuple(latent.shape) if isinstance(latent, Tensor) and not latent.is_nested else ()
        if shape[:-2] != (1, channels, *frames) or any(side % step for side in shape[-2:]):
            got = list(shape) if shape else type(latent).__name__
            wanted = ", ".join(map(str, (1, channels, *frames)))
            raise GeneratorError(
                f"Expected a latent of one picture for this MODEL, [{wanted}, h, w], sides multiples of {step}, got "
                f"{got}. Choose one picture of a batch or video, made with the same MODEL."
            )
        return latent.cpu()


def _digest(mask: Tensor) -> str:
    return hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:8]


def _larger(mask: Tensor, times: int) -> Tensor:
    """A mask [1, 1, h, w] with each of its elements so many times along both sides."""
    return mask.repeat_interleave(times, -1).repeat_interleave(times, -2)
