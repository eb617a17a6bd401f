"""Flux.1 of diffusers as a `Painter`: as an editor by reference (Kontext), or by painting regions anew (inpainting)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from ...core.errors import GeneratorError
from ...core.fingerprint import weights_sha256
from ...core.protocols import ModelInfo
from ...process.protocols import Canvas
from ...process.states import Stroke
from ..regions import TOKEN, check_prompt, check_size, place_of

PATCH = 2  # latent pixels along a token's side


@dataclass(frozen=True)
class FluxSettings:
    """How a FluxPainter samples; help in `field.metadata`."""

    height: int = field(default=1024, metadata={"help": "Of a draft, in pixels; a multiple of 16."})
    width: int = field(default=1024, metadata={"help": "Of a draft, in pixels; a multiple of 16."})
    steps: int = field(default=28, metadata={"help": "Of the sampler, for drafts and strokes."})
    guidance: float = field(default=2.5, metadata={"help": "Distilled guidance, where the model has it."})
    max_sequence_length: int = field(default=512, metadata={"help": "Tokens of a prompt for T5."})
    denoise_whole: float = field(
        default=0.6, metadata={"help": "Share of the noise from which a whole picture is painted over; not Kontext."}
    )
    grow: int = field(default=0, metadata={"help": "Pixels by which a region is widened before it is snapped to 16."})

    def __post_init__(self) -> None:
        check_size(self.height, self.width)
        for name, least in (("steps", 1), ("max_sequence_length", 1), ("grow", 0)):
            if getattr(self, name) < least:
                raise GeneratorError(f"Expected {name} of at least {least}, got {getattr(self, name)!r}.")
        if not 0 < self.denoise_whole <= 1:
            raise GeneratorError(f"Expected denoise_whole above 0 and at most 1, got {self.denoise_whole!r}.")


class FluxPainter:
    """Drafts by text to image; how a stroke is made depends on the pipeline.

    With a FluxKontextPipeline the canvas's latents are the reference, and the instruction is the prompt. With a
    FluxPipeline the stroke's `local_prompt` is painted into its region from noise, around which the canvas stays; with
    no region the whole picture is painted over, from the canvas and a share of the noise.

    A canvas carries latents as the network sees them, [1, C, h, w] on the CPU. Outside a region whole tokens stay
    bit-equal: at each step of the sampler they are the canvas's, with as much noise as the step has.
    """

    keeps_outside = True

    def __init__(self, pipeline: FluxPipeline | FluxKontextPipeline, settings: FluxSettings | None = None) -> None:
        self.pipeline: Any = pipeline
        self.settings = settings or FluxSettings()
        self._info: ModelInfo | None = None

    @property
    def by_reference(self) -> bool:
        """Whether strokes are instructions to an editor."""
        return isinstance(self.pipeline, FluxKontextPipeline)

    @property
    def info(self) -> ModelInfo:
        """Name of the folder, architecture, dtype and weights' hash of the transformer, and the settings; cached."""
        if self._info is None:
            network = self.pipeline.transformer
            name = Path(str(self.pipeline.config.get("_name_or_path") or type(self.pipeline).__name__)).name
            kind = "flux-1-kontext" if self.by_reference else "flux-1-inpaint"
            settings = ", ".join(f"{key} {value}" for key, value in vars(self.settings).items())
            digest = weights_sha256(network.named_parameters())
            self._info = ModelInfo(name, kind, str(network.dtype).removeprefix("torch."), digest, settings)
        return self._info

    def draft(self, prompt: str, seed: int) -> Canvas:
        """A picture of a prompt. Raises GeneratorError where the prompt is empty."""
        rows, columns = self.settings.height // TOKEN, self.settings.width // TOKEN
        return self._canvas(self._sampled(check_prompt(prompt), self._noise(seed, rows, columns)))

    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        """The canvas with a stroke carried out, in its region if it has one.

        Raises:
            GeneratorError: the canvas is not one of this model's.
        """
        clean = self._checked(canvas.latent)
        rows, columns = (side // PATCH for side in clean.shape[-2:])
        inside = place_of(stroke, rows, columns, self.settings.grow / TOKEN)
        noise = self._noise(seed, rows, columns)
        if self.by_reference:
            instruction = check_prompt(stroke.instruction, "stroke's instruction")
            return self._canvas(self._sampled(instruction, noise, clean, inside, image=clean))
        prompt = check_prompt(stroke.local_prompt or stroke.instruction, "stroke's prompt")
        if inside is not None:
            return self._canvas(self._sampled(prompt, noise, clean, inside))
        sigmas = self._last_sigmas(self.settings.denoise_whole)
        start = self._first_level(sigmas, rows * columns)
        return self._canvas(self._sampled(prompt, start * noise + (1 - start) * clean, sigmas=sigmas))

    def _sampled(
        self,
        prompt: str,
        start: Tensor,
        clean: Tensor | None = None,
        inside: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Latents [1, C, h, w] that the pipeline makes from `start`; outside of `inside` they are `clean`."""
        height, width = (side * TOKEN // PATCH for side in start.shape[-2:])
        if self.by_reference:
            options |= {"max_area": height * width, "_auto_resize": False}
        if clean is not None and inside is not None:
            options["callback_on_step_end"] = self._putting_back(_pack(start), _pack(clean), inside.reshape(1, -1, 1))
        packed = self.pipeline(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            max_sequence_length=self.settings.max_sequence_length,
            latents=_pack(start).to(self._dtype),
            output_type="latent",
            return_dict=False,
            **options,
        )[0]
        return _unpack(packed, *start.shape[-2:]).cpu()

    def _putting_back(self, noise: Tensor, clean: Tensor, inside: Tensor) -> Callable[..., dict[str, Tensor]]:
        """What a pipeline calls after each step; all packed, [1, N, 4·C] and [1, N, 1]."""

        def put_back(pipeline: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents, level = values["latents"], float(pipeline.scheduler.sigmas[step + 1])
            there = clean if level == 0 else level * noise + (1 - level) * clean
            return {"latents": torch.where(inside.to(latents.device), latents, there.to(latents))}

        return put_back

    def _last_sigmas(self, share: float) -> list[float]:
        """The last `steps` of as many noise levels, before the model's own shift, as begin with this share of noise."""
        steps = self.settings.steps
        total = max(steps, round(steps / share))
        return np.linspace(1.0, 1 / total, total)[-steps:].tolist()

    def _first_level(self, sigmas: list[float], tokens: int) -> float:
        """The noise level in [0, 1] at which the sampler will start."""
        scheduler: Any = copy.deepcopy(self.pipeline.scheduler)
        own = scheduler.config
        shift = calculate_shift(
            tokens,
            own.get("base_image_seq_len", 256),
            own.get("max_image_seq_len", 4096),
            own.get("base_shift", 0.5),
            own.get("max_shift", 1.15),
        )
        retrieve_timesteps(scheduler, len(sigmas), "cpu", sigmas=sigmas, mu=shift)
        return float(scheduler.sigmas[0])

    @torch.no_grad()
    def _canvas(self, latents: Tensor) -> Canvas:
        vae: Any = self.pipeline.vae
        placed = latents.to(self.pipeline._execution_device, vae.dtype)
        scaled = placed / vae.config.scaling_factor + vae.config.shift_factor
        picture = (vae.decode(scaled, return_dict=False)[0].float() + 1) / 2  # [-1, 1] -> [0, 1]
        self.pipeline.maybe_free_model_hooks()  # where its parts are offloaded
        return Canvas(latents, picture.clamp(0, 1).cpu())

    def _noise(self, seed: int, rows: int, columns: int) -> Tensor:
        """The same for a seed on every machine."""
        random = torch.Generator().manual_seed(seed)
        return torch.randn(1, self._channels, rows * PATCH, columns * PATCH, generator=random)

    def _checked(self, latent: Any) -> Tensor:
        right = isinstance(latent, Tensor) and latent.ndim == 4 and latent.shape[:2] == (1, self._channels)
        if not right or any(side % PATCH for side in latent.shape[-2:]):
            got = list(latent.shape) if isinstance(latent, Tensor) else type(latent).__name__
            raise GeneratorError(
                f"Expected a canvas of this painter, latents [1, {self._channels}, h, w] with even sides, got {got}. "
                "Give one picture that this model has drafted."
            )
        return latent

    @property
    def _channels(self) -> int:
        return self.pipeline.transformer.config.in_channels // PATCH**2

    @property
    def _dtype(self) -> torch.dtype:
        return self.pipeline.transformer.dtype


def _pack(latents: Tensor) -> Tensor:
    """[1, C, h, w] → [1, h·w/4, 4·C], as Flux packs patches of 2 × 2."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def _unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """The way back, to latents [1, C, height, width]."""
    return FluxPipeline._unpack_latents(packed, height, width, 1)
