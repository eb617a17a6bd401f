"""Flux.1 schnell and dev from diffusers: clean image estimates, pictures, and the LoRA that is trained."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ...core.errors import GeneratorError
from ...core.fingerprint import weights_sha256
from ...core.protocols import AS_GENERATOR, Draw, Estimate, ModelInfo, Need, Sampling
from ...core.residency import visiting
from ..architectures import flux as flux_lora
from ..architectures.packing import PATCH, flow_sigmas, pack, token_positions, unpack
from ..lora import AttachedLora, LoraWeights, gaussian_weights, layer_shapes
from ..noise import draw_noise
from ..settings import GeneratorSettings, check_positive

DEFAULT_SIZE = 512  # pixels
DEFAULT_GUIDANCE = 3.5  # of Flux dev, as in FluxPipeline


@dataclass(frozen=True)
class FluxPrompts:
    """Encoded prompts: the T5 sequence and the CLIP vector of each."""

    texts: tuple[str, ...]
    sequence: Tensor  # [P, L, joint_attention_dim]
    pooled: Tensor  # [P, pooled_projection_dim]


@dataclass(frozen=True)
class Conditions:
    """All that the transformer sees of a batch besides its latents and their noise level."""

    sequence: Tensor  # [B, L, joint_attention_dim]
    pooled: Tensor  # [B, pooled_projection_dim]
    guidance: Tensor | None  # [B], None for schnell
    image_ids: Tensor  # [T, 3], (0, row, column) of each token

    def pick(self, rows: Tensor) -> Conditions:
        guidance = None if self.guidance is None else self.guidance[rows]
        return Conditions(self.sequence[rows], self.pooled[rows], guidance, self.image_ids)


class FluxGenerator:
    """Flux.1 as a `Generator`: rectified flow, z = (1 − σ)·x₀ + σ·ε, velocity v = ε − x₀.

    Args:
        transformer: a FluxTransformer2DModel of our own (see `sharing.share_weights`), on its device, in eval mode.
        vae: AutoencoderKL or AutoencoderTiny with the transformer's latent channels, on the same device.
        scheduler: its configuration makes the noise levels; it is not stepped.
        prompts: encoded on any device.
        name: what a LoRA's metadata calls this model.
        settings: defaults of image size and steps; 512 × 512, 4 steps (schnell) or 28 (dev) where None.
        device: where it computes, None is where the transformer lies. Weights that lie elsewhere come to this device
            only inside `training` and `sample`.

    Raises:
        GeneratorError: settings or scheduler do not fit Flux.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        prompts: FluxPrompts,
        name: str,
        settings: GeneratorSettings | None = None,
        device: torch.device | None = None,
    ) -> None:
        settings = settings or GeneratorSettings()
        self.transformer, self.vae, self.scheduler = transformer, vae, _check_scheduler(scheduler)
        self.device, self.dtype = device or transformer.device, transformer.dtype
        self._prompts = FluxPrompts(
            prompts.texts,
            prompts.sequence.to(self.device, self.dtype),
            prompts.pooled.to(self.device, self.dtype),
        )
        self._name = name
        self._info: ModelInfo | None = None
        self._lora: AttachedLora | None = None
        self._steps = settings.num_inference_steps or (28 if self._is_guided else 4)
        self._height, self._width = settings.height or DEFAULT_SIZE, settings.width or DEFAULT_SIZE
        self._latent_size(Sampling())
        if settings.gradient_checkpointing:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self.transformer.enable_gradient_checkpointing()
        if self.vae._supports_gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()

    # What it is

    @property
    def num_prompts(self) -> int:
        return len(self._prompts.texts)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts' texts."""
        return self._prompts.texts

    @property
    def num_inference_steps(self) -> int:
        """Default number of sampler steps."""
        return self._steps

    @property
    def _is_guided(self) -> bool:
        return bool(self.transformer.config.guidance_embeds)

    @property
    def info(self) -> ModelInfo:
        """Name, architecture ("flux-1-schnell" or "flux-1-dev"), dtype and a hash of the base weights, cached."""
        if self._info is None:
            architecture = "flux-1-dev" if self._is_guided else "flux-1-schnell"
            digest = weights_sha256(self._base_parameters())
            self._info = ModelInfo(self._name, architecture, str(self.dtype).removeprefix("torch."), digest)
        return self._info

    def _base_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names as they are without PEFT, whatever adapters are attached."""
        for prefix, model in (("transformer", self.transformer), ("vae", self.vae)):
            for name, parameter in model.named_parameters():
                if ".lora_" not in name:
                    yield f"{prefix}.{name.replace('.base_layer.', '.')}", parameter

    # Its LoRA

    def _lora_shapes(self) -> dict[str, tuple[int, int]]:
        return layer_shapes(self.transformer, flux_lora.target_modules(*self._num_blocks))

    @property
    def _num_blocks(self) -> tuple[int, int]:
        return len(self.transformer.transformer_blocks), len(self.transformer.single_transformer_blocks)

    def add_lora(self, rank: int, alpha: float, seed: int) -> None:
        """Attaches a fresh LoRA, Gaussian A from `seed` and zero B, in place of any other of ours.

        Raises:
            GeneratorError: rank or alpha is not positive, or the user has fused another LoRA.
        """
        self._attach(gaussian_weights(self._lora_shapes(), rank, alpha, seed))

    def _attach(self, weights: LoraWeights) -> None:
        self.remove_lora()
        with self._here():  # PEFT puts the LoRA where it finds the weights
            self._lora = AttachedLora(self.transformer, weights)

    def remove_lora(self) -> None:
        """Gives back the base model; nothing happens if no LoRA of ours is attached."""
        if self._lora is not None:
            self._lora.remove()
            self._lora = None

    def _attached(self) -> AttachedLora:
        if self._lora is None:
            raise GeneratorError("Expected a LoRA, but none is attached. Call add_lora(rank, alpha, seed) first.")
        return self._lora

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's trainable float32 tensors by names such as "transformer_blocks.0.attn.to_q.lora_A".

        Raises:
            GeneratorError: no LoRA is attached.
        """
        return self._attached().parameters()

    def lora_state_dict(self, format: str = "diffusers") -> dict[str, Tensor]:
        """Copies of the LoRA's tensors with `.alpha`, float32 on the CPU, so that strength 1.0 is the model as trained.

        Args:
            format: "diffusers" for `load_lora_weights` and recent ComfyUI, "comfyui" for the native, fused names.

        Raises:
            GeneratorError: another format, or no LoRA is attached.
        """
        return flux_lora.export(self._attached().weights(), format, *self._num_blocks)

    def load_lora_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Attaches the LoRA that `lora_state_dict("diffusers")` wrote, with its rank and alpha, in place of ours.

        Raises:
            LoraFileError: keys are missing or unexpected, or shapes differ; the attached LoRA is then untouched.
        """
        self._attach(flux_lora.from_diffusers(state, self._lora_shapes()))

    def _scaled(self, scale: float) -> Any:
        return nullcontext() if self._lora is None or scale == 1 else self._lora.scaled(scale)

    @contextmanager
    def training(self) -> Iterator[FluxGenerator]:
        """While entered, the weights are on `device`, and only our LoRA requires gradients; restored afterwards.

        Make the backward pass inside, too: with gradient checkpointing it runs the model again.
        """
        ours = {id(parameter) for parameter in (self._lora.parameters().values() if self._lora else ())}
        parameters = chain(self.transformer.parameters(), self.vae.parameters())
        frozen = [p for p in parameters if p.requires_grad and id(p) not in ours]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            with self._here():
                yield self
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _here(self) -> AbstractContextManager[None]:
        return visiting([self.transformer, self.vae], self.device)

    # Its pictures

    def estimate(self, draw: Draw, needs: Collection[Need] = ("image", "prediction")) -> Estimate:
        """Clean image estimates x̂₀ = z − σ·v, decoded (paper, section 3.2); one forward pass with gradient.

        Args:
            draw: what to draw; `guidance` is ignored by schnell, which has none.
            needs: which of the estimate's fields to make.

        Returns:
            Images [B, 3, H, W] float32, unclamped; predictions are velocities of packed latents
            [B, H/16 · W/16, 64], float32.

        Raises:
            GeneratorError: the draw does not fit this generator.
        """
        steps = self._check_draw(draw)
        h, w = self._latent_size(draw.sampling)
        conditions = self._conditions(draw.prompt_indices, draw.sampling.guidance, h, w)
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            with self._scaled(0.0 if draw.base_trajectory else 1.0):
                z, sigma = self._start(draw, steps, conditions, h, w)
            if {"base_image", "base_prediction"} & {*needs}:
                with self._scaled(0.0):
                    found["base_prediction"] = self._velocity(z, sigma, conditions)
                if "base_image" in needs:
                    found["base_image"] = self._decode(z - sigma[:, None, None] * found["base_prediction"], h, w)
        if {"image", "prediction"} & {*needs}:
            found["prediction"] = self._velocity(z, sigma, conditions)
            if "image" in needs:
                found["image"] = self._decode(z - sigma[:, None, None] * found["prediction"], h, w)
        return Estimate(**{name: found[name] for name in needs})

    def _start(self, draw: Draw, steps: int, conditions: Conditions, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Where the step with gradient is made: latents [B, T, C] and their noise levels [B]."""
        sigmas = self._sigmas(steps, h, w)
        z = self._noise(draw.noise_seeds, h, w)
        if draw.renoise_times is None:
            return self._roll_out(z, sigmas, draw.sampler_steps, conditions), sigmas[list(draw.sampler_steps)]
        clean = self._roll_out(z, sigmas, [steps] * len(z), conditions)
        time = torch.tensor(draw.renoise_times, dtype=torch.float32, device=self.device)
        noise = self._noise(draw.renoise_seeds or (), h, w)
        return torch.lerp(clean, noise, time[:, None, None]), time

    @torch.no_grad()
    def sample(
        self,
        prompt_indices: Sequence[int],
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        lora_scale: float = 1.0,
        *,
        sampling: Sampling = AS_GENERATOR,
    ) -> Tensor:
        """Pictures by Euler's method, equal to FluxPipeline's from the same latents.

        Args:
            prompt_indices: one per picture.
            seeds: one per picture, 0 to 2^64 − 1.
            num_inference_steps: goes before that of `sampling`.
            lora_scale: strength of our LoRA; 1 is the model as trained, 0 exactly the base model.
            sampling: sampler steps, size (multiples of 16 pixels), and guidance of Flux dev (None for 3.5).

        Returns:
            [B, 3, H, W] float32 in [0, 1], in the order asked for.

        Raises:
            GeneratorError: an index, size or number of steps is out of range.
        """
        wanted = sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = self._check_batch(prompt_indices, seeds, wanted)
        h, w = self._latent_size(sampling)
        conditions = self._conditions(prompt_indices, sampling.guidance, h, w)
        with self._here(), self._scaled(lora_scale):
            z = self._roll_out(self._noise(seeds, h, w), self._sigmas(steps, h, w), [steps] * len(seeds), conditions)
            return self._decode(z, h, w).clamp(0, 1)

    def _roll_out(self, z: Tensor, sigmas: Tensor, steps: Sequence[int], conditions: Conditions) -> Tensor:
        """Makes the first `steps[b]` Euler steps of sample b; each forward pass holds only those still under way."""
        z = z.clone()
        remaining = torch.tensor(steps, device=self.device)
        for i in range(max(steps)):
            rows = (remaining > i).nonzero()[:, 0]
            velocity = self._velocity(z[rows], sigmas[i].expand(len(rows)), conditions.pick(rows))
            z[rows] += (sigmas[i + 1] - sigmas[i]) * velocity
        return z

    def _velocity(self, z: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """dz/dσ at latents [B, T, C] of noise levels [B], float32."""
        text_ids = conditions.image_ids.new_zeros(conditions.sequence.shape[1], 3)
        velocity = self.transformer(
            hidden_states=z.to(self.dtype),
            timestep=(sigma * 1000).to(self.dtype) / 1000,  # rounded as FluxPipeline rounds it
            guidance=conditions.guidance,
            pooled_projections=conditions.pooled,
            encoder_hidden_states=conditions.sequence,
            txt_ids=text_ids,
            img_ids=conditions.image_ids,
            return_dict=False,
        )[0]
        return velocity.float()

    def _decode(self, z: Tensor, h: int, w: int) -> Tensor:
        """Latents [B, T, C] -> images [B, 3, H, W], float32, unclamped."""
        config = self.vae.config
        latents = unpack(z, h, w) / config.scaling_factor + (config.shift_factor or 0.0)
        image = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (image.float() + 1) / 2  # [-1, 1] -> [0, 1]

    def _noise(self, seeds: Sequence[int], h: int, w: int) -> Tensor:
        channels = self.transformer.config.in_channels // PATCH**2
        return pack(draw_noise(seeds, channels, h, w)).to(self.device)

    def _sigmas(self, steps: int, h: int, w: int) -> Tensor:
        return flow_sigmas(self.scheduler, steps, h * w // PATCH**2).to(self.device)

    def _conditions(self, prompt_indices: Sequence[int], guidance: float | None, h: int, w: int) -> Conditions:
        rows = list(prompt_indices)
        strength = None
        if self._is_guided:
            value = DEFAULT_GUIDANCE if guidance is None else guidance
            strength = torch.full((len(rows),), value, dtype=torch.float32, device=self.device)
        positions = token_positions(h, w).to(self.device)
        return Conditions(self._prompts.sequence[rows], self._prompts.pooled[rows], strength, positions)

    # What it refuses

    def _latent_size(self, sampling: Sampling) -> tuple[int, int]:
        check_positive("height", sampling.height)
        check_positive("width", sampling.width)
        height, width = sampling.height or self._height, sampling.width or self._width
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if height % (factor * PATCH) or width % (factor * PATCH):
            raise GeneratorError(
                f"Expected an image size in multiples of {factor * PATCH} pixels, got {width} × {height} (width × "
                "height)."
            )
        return height // factor, width // factor

    def _check_batch(self, prompt_indices: Sequence[int], seeds: Sequence[int], steps: int | None) -> int:
        """The number of sampler steps, once the batch is known to be sound."""
        if len(prompt_indices) == 0 or len(prompt_indices) != len(seeds):
            raise GeneratorError(
                f"Expected one seed for each of at least one prompt index, got {len(prompt_indices)} indices and "
                f"{len(seeds)} seeds."
            )
        wrong = [index for index in prompt_indices if not 0 <= index < self.num_prompts]
        if wrong:
            raise GeneratorError(f"Expected prompt indices from 0 to {self.num_prompts - 1}, got {wrong}.")
        check_positive("num_inference_steps", steps)
        return steps or self._steps

    def _check_draw(self, draw: Draw) -> int:
        steps = self._check_batch(draw.prompt_indices, draw.noise_seeds, draw.sampling.num_inference_steps)
        size = len(draw.prompt_indices)
        if draw.renoise_times is not None:
            if len(draw.renoise_times) != size or len(draw.renoise_seeds or ()) != size:
                raise GeneratorError(f"Expected {size} renoise times and seeds, one per sample, got {draw}.")
            if not all(0 < time <= 1 for time in draw.renoise_times):
                raise GeneratorError(f"Expected renoise times above 0 and up to 1, got {draw.renoise_times}.")
        elif len(draw.sampler_steps) != size or not all(0 <= step < steps for step in draw.sampler_steps):
            raise GeneratorError(
                f"Expected {size} sampler steps from 0 to {steps - 1}, one per sample, got {draw.sampler_steps}."
            )
        return steps


def _check_scheduler(scheduler: Any) -> Any:
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("stochastic_sampling"):
        raise GeneratorError(
            "Expected Flux's own sampler, FlowMatchEulerDiscreteScheduler without stochastic_sampling, got "
            f"{type(scheduler).__name__}. Set pipeline.scheduler to it."
        )
    return copy.deepcopy(scheduler)
