# pyright: reportMissingImports=false
"""Any image MODEL that ComfyUI can sample, as a `Generator`: trained through ComfyUI's own sampling code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any

import comfy.ldm.flux.model
import comfy.model_management
import torch
from torch import Tensor, nn

from ...comfy_host.models import base_weights, check_vae, file_name, pixels_per_latent
from ...core.errors import GeneratorError, StopRequested
from ...core.fingerprint import weights_sha256
from ...core.protocols import (
    AS_GENERATOR,
    ATTENTION_AND_FEED_FORWARD,
    SLIDER,
    Draw,
    Estimate,
    ModelInfo,
    Need,
    Sampling,
)
from ...core.residency import Turns
from ...core.sizes import ModelSize
from ...core.streaming import Offload, check_offload
from .. import rollout
from ..architectures.layers import splits
from ..lora import (
    LoraWeights,
    Shapes,
    check_format,
    gaussian_weights,
    part_seeds,
    read,
    shapes_of,
    slider_value,
    split,
    with_slider,
    write,
)
from .decoder import Decoder
from .existing import starting_from
from .gradients import differentiable, leave_inference_mode, recomputed, trainable_through
from .inputs import (
    architecture_name,
    check_conditionings,
    check_sigmas,
    known_architecture,
    latent_shape,
    resident_model,
    resident_vae,
    trainable_model,
)
from .lora import ComfyLora, target_layers
from .memory import too_large, training_memory
from .sampling import Denoiser, loaded, loaded_beside, make_sigmas
from .sizes import decoder_size, network_size
from .visits import Visits, why_not

log = logging.getLogger(__name__)


class ComfyGenerator:
    """A MODEL, a VAE and CONDITIONINGs of ComfyUI as a `Generator`. Nothing of the user's is changed or copied.

    Args:
        model: MODEL (ModelPatcher), with whatever LoRAs and patches the user has applied.
        vae: VAE for the MODEL's latents.
        conditionings: one CONDITIONING for each training prompt.
        latent: LATENT whose size is trained at; an empty one of another channel count is adapted as KSampler does.
        negative: CONDITIONING for classifier-free guidance, needed if `cfg` is not 1.
        cfg: classifier-free guidance scale; 1 for distilled models such as Flux, whose own guidance comes with the
            CONDITIONING (FluxGuidance node).
        steps, scheduler: the sampler's noise levels, as in KSampler.
        sigmas: SIGMAS [steps + 1] to use instead, falling, the last 0.
        prompts: the conditionings' texts, where known.
        gradient_checkpointing: recompute each block in the backward pass: less memory, same gradient.
        gradient_vae: a VAE for the same latents that makes the images of `estimate`, such as a tiny one (taef1): less
            memory and time, slightly other gradients. None: `vae`, which makes the pictures of `sample` in any case.
        offload: False leaves it to ComfyUI to load MODEL and VAE, unless they take turns or ComfyUI would stream their
            weights (dynamic VRAM). True keeps the weights in main memory and brings them to the device while this
            generator works, "blocks" each block of the network only while that block works, which it then does a
            second time in the backward pass, whatever `gradient_checkpointing` is. Weights of a kind that cannot be
            moved so stay ComfyUI's, and a warning says why.

    Attributes:
        loaded_with: patchers of other models that stay loaded while this one trains, the critics' that ComfyUI loads;
            None where they and the generator take turns.
        keeps_graph: see `Generator`.

    Raises:
        GeneratorError: the parts do not fit each other; the message says which and what to change.
    """

    def __init__(
        self,
        model: Any,
        vae: Any,
        conditionings: Sequence[Any],
        *,
        latent: Mapping[str, Any],
        negative: Any | None = None,
        cfg: float = 1.0,
        steps: int = 4,
        scheduler: str = "simple",
        sigmas: Tensor | None = None,
        prompts: Sequence[str] | None = None,
        gradient_checkpointing: bool = False,
        gradient_vae: Any | None = None,
        offload: Offload = False,
    ) -> None:
        check_offload(offload, GeneratorError)
        if not conditionings:
            raise GeneratorError("Expected at least one CONDITIONING: connect a CLIPTextEncode node.")
        if cfg != 1 and negative is None:
            raise GeneratorError(f"A cfg of {cfg:g} needs a negative CONDITIONING: connect one, or set cfg to 1.")
        self._conditionings, self._negative, self._cfg = tuple(conditionings), negative, cfg
        check_conditionings(self._all_conditionings)
        check_vae(model, vae)
        self._given = trainable_model(model), vae, vae if gradient_vae is None else gradient_vae
        check_vae(model, self._given[2])
        self._visits: Visits | None = None
        self._offload: Offload = False
        self.arrange(offload, gradient_checkpointing)
        self._shape = latent_shape(self.model, latent)
        self._decode = self._decode_for_gradient = Decoder(self.model, self.vae)
        if self.gradient_vae is not self.vae:
            factor = pixels_per_latent(self.model, self.vae)
            self._decode_for_gradient = Decoder(self.model, self.gradient_vae, factor)
        self._sigmas = check_sigmas(make_sigmas(self.model, scheduler, steps) if sigmas is None else sigmas)
        self._prompts = None if prompts is None else tuple(prompts)
        self._architecture = known_architecture(self.model.model)
        self._layers = self._target_layers(ATTENTION_AND_FEED_FORWARD)
        self._lora: ComfyLora | None = None
        self._slider: ComfyLora | None = None  # what a slider counts, beside it
        self._denoisers: dict[tuple[int, ...], Denoiser] | None = None  # by shape, while prepared
        self._turns = Turns({})  # of the session: none where ComfyUI loads the models
        self._info: ModelInfo | None = None
        self.loaded_with: Sequence[Any] | None = ()

    def arrange(self, offload: Offload, gradient_checkpointing: bool) -> None:
        """From now on the weights lie, and blocks are computed again, as these arguments of the class say.

        The numbers stay. Call it outside `training`.
        """
        model, vae, gradient_vae = self.model, self.vae, self.gradient_vae = self._given
        self._checkpointing, self._visits = gradient_checkpointing, None
        if reason := why_not(model, *self.vaes):
            if offload:
                log.warning("MODEL and VAE are loaded by ComfyUI, though offload is %r: %s.", offload, reason)
            self._offload = False
            self.model, self.vae = resident_model(model, reason), resident_vae(vae, reason)
            self.gradient_vae = self.vae if gradient_vae is vae else resident_vae(gradient_vae, reason)
        else:
            streamed = any(patcher.is_dynamic() for patcher in (model, *(v.patcher for v in self.vaes)))
            self._offload = offload or streamed
            self._visits = Visits(model, self.vaes, offload == "blocks" or (not offload and too_large(model)))
            self.model = self._visits.model

    # What it is

    @property
    def num_prompts(self) -> int:
        return len(self._conditionings)

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The prompts' texts, None where only CONDITIONINGs are known."""
        return self._prompts

    @property
    def num_inference_steps(self) -> int:
        """Number of sampler steps."""
        return len(self._sigmas) - 1

    @property
    def can_offload(self) -> bool:
        """Whether this pack can move the weights; others are where ComfyUI puts them, whatever `offload` is."""
        return self._visits is not None

    @property
    def keeps_graph(self) -> bool:
        return self._visits is not None and (self._checkpointing or self._visits.by_block)

    @property
    def info(self) -> ModelInfo:
        """Name of the model's file, architecture, dtype, and a hash of the base weights, cached."""
        if self._info is None:
            dtype = str(self.model.model_dtype()).removeprefix("torch.")
            digest = weights_sha256(base_weights(self.model))
            other = "" if self.gradient_vae is self.vae else f"gradients by {file_name(self.gradient_vae.patcher)}"
            self._info = ModelInfo(file_name(self.model), architecture_name(self.model.model), dtype, digest, other)
        return self._info

    @property
    def _all_conditionings(self) -> list[Any]:
        return [*self._conditionings, *([] if self._negative is None else [self._negative])]

    @property
    def _network(self) -> nn.Module:
        return self.model.model.diffusion_model

    @property
    def vaes(self) -> list[Any]:
        """The VAE, and the one for the gradient if it is another."""
        return [self.vae, *([] if self.gradient_vae is self.vae else [self.gradient_vae])]

    def working_memory(self, batch_size: int) -> int:
        """Bytes that a training step takes on the device beside the weights, an estimate."""
        passes = 1 if self._cfg == 1 else 2
        return training_memory(self.model, self.gradient_vae, self._shape, batch_size, passes, self._checkpointing)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the pictures that are trained on."""
        factor = pixels_per_latent(self.model, self.vae)
        return self._shape[-2] * factor, self._shape[-1] * factor

    def sizes(
        self, samples: int, rank: int, targets: str = ATTENTION_AND_FEED_FORWARD, bits: str | None = None
    ) -> tuple[ModelSize, ModelSize, int]:
        """What network and decoder take on the device for so many samples, and the bytes of a LoRA.

        Args:
            bits: None: the weights are as ComfyUI has loaded them.
        """
        shapes = map(shapes_of, self._target_layers(targets).values())
        lora = sum(rank * (prod(shape.down) + prod(shape.up)) for shape in shapes) * torch.float32.itemsize
        guided = 1 if self._cfg == 1 else 2
        network = network_size(self.model, self._all_conditionings, self._shape, samples * guided)
        return network, decoder_size(self.gradient_vae, self._shape, samples), lora

    # Its LoRA

    def _target_layers(self, targets: str) -> dict[str, nn.Module]:
        return target_layers(self._network, self._architecture, targets)

    def add_lora(
        self, rank: int, alpha: float, seed: int, targets: str = ATTENTION_AND_FEED_FORWARD, slider: bool = False
    ) -> None:
        """A fresh LoRA, Gaussian A from `seed` and zero B, in place of any other of ours.

        Args:
            targets: which layers it changes, see `targets.chosen`.
            slider: whether there is a second one, which counts as often as `Sampling.slider` says.

        Raises:
            GeneratorError: rank or alpha is not positive, or no layer is chosen.
        """
        self._layers = self._target_layers(targets)
        self._attach(*(gaussian_weights(self._shapes, rank, alpha, own) for own in part_seeds(seed, slider)))

    def _attach(self, weights: LoraWeights, slider: LoraWeights | None = None) -> None:
        with leave_inference_mode():
            self._lora = ComfyLora(self._layers, weights)
            self._slider = None if slider is None else ComfyLora(self._layers, slider)

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's trainable float32 tensors by names such as "double_blocks.0.img_attn.qkv.lora_A".

        Raises:
            GeneratorError: there is no LoRA.
        """
        own, slider = self._attached().parameters(), {} if self._slider is None else self._slider.parameters()
        return own | {f"{SLIDER}{name}": parameter for name, parameter in slider.items()}

    def _attached(self) -> ComfyLora:
        if self._lora is None:
            raise GeneratorError("Expected a LoRA, but there is none. Call add_lora(rank, alpha, seed) first.")
        return self._lora

    def lora_state_dict(self, format: str = "diffusers", slider: bool = False) -> dict[str, Tensor]:
        """Copies of the LoRA's tensors with `.alpha`, float32 on the CPU, so that strength 1.0 is the model as trained.

        Args:
            format: "comfyui" for ComfyUI's own key names, "diffusers" for diffusers', which ComfyUI reads as well.
            slider: the part that a slider counts, instead of the constant one.

        Raises:
            GeneratorError: no LoRA, or none with a slider, or a format that this architecture does not have.
        """
        part = self._attached()
        if slider:
            part = with_slider(self._slider)
        layers = part.weights().layers
        if check_format(format) == "diffusers":
            if self._architecture is None:
                raise GeneratorError(
                    "Expected the LoRA format 'comfyui', or 'diffusers' for a model that diffusers has in a known "
                    f"form, got {format!r} for a {type(self.model.model).__name__} model."
                )
            layers = split(layers, splits(self._architecture.blocks, layers, "comfyui"))
        return write(layers, check_format(format), self._architecture)

    def load_lora_state_dict(
        self,
        state: Mapping[str, Tensor],
        targets: str = ATTENTION_AND_FEED_FORWARD,
        slider: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Takes up the LoRA that `lora_state_dict("comfyui")` wrote, in place of ours.

        Args:
            slider: the part that a slider counts, if it has one.

        Raises:
            LoraFileError: keys are missing or unexpected, or shapes differ.
        """
        self._layers = self._target_layers(targets)
        states = [state] if slider is None else [state, slider]
        self._attach(*(read(part, self._shapes, "comfyui", self._architecture) for part in states))

    @property
    def _shapes(self) -> dict[str, Shapes]:
        return {name: shapes_of(layer) for name, layer in self._layers.items()}

    def as_initial(
        self,
        state: Mapping[str, Tensor],
        rank: int,
        alpha: float,
        seed: int,
        targets: str = ATTENTION_AND_FEED_FORWARD,
    ) -> dict[str, Tensor]:
        """A LoRA file's tensors as the start of a training (`initial_lora` of `distill`), of any trainer's key names.

        Raises:
            LoraFileError: the file does not fit the layers that are trained, or needs a higher rank.
        """
        self._layers = self._target_layers(targets)
        with leave_inference_mode():
            return starting_from(self.model, gaussian_weights(self._shapes, rank, alpha, seed), state)

    @contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        with ExitStack() as stack:
            for part in (self._lora, self._slider):
                if part is not None:
                    stack.enter_context(part.scaled(scale))
            yield

    def _slide(self, value: float | None) -> None:
        if self._slider is not None:
            self._slider.count(slider_value(value))

    # Borrowing the user's models

    @contextmanager
    def training(self, in_turns: bool = False) -> Iterator[ComfyGenerator]:
        """While entered, `estimate` carries gradients; make the backward pass inside, too.

        With `in_turns` network and decoder are on the device only while they work, forward and backward, and where
        there is gradient checkpointing the backward pass may be made in a later session. Afterwards every weight,
        attribute and flag of the MODEL and the VAE is the one that was there before.

        Raises:
            StopRequested: the user has cancelled ComfyUI's run.
        """
        with self._prepared(self._offload or in_turns, in_turns, grad=True):
            try:
                yield self
            except comfy.model_management.InterruptProcessingException as error:  # raised by any layer of a model
                raise StopRequested from error

    @contextmanager
    def _prepared(
        self, moved: object, in_turns: bool, grad: bool, shape: tuple[int, ...] | None = None
    ) -> Iterator[None]:
        """While entered, the models can work; `moved` is whether this pack moves them, where it can."""
        if self._denoisers is not None:  # sampling amid training
            yield
            return
        visits = self._visits if moved else None
        with ExitStack() as stack:
            stack.enter_context(
                self._loaded(grad, shape or self._shape) if visits is None else self._borrowed(visits, grad)
            )
            parts = None if visits is None else visits.blocks
            checkpointing = self._checkpointing or parts is not None
            trained = [*self._layers.values()] if self._lora is not None else []
            stack.enter_context(differentiable(self._network, checkpointing, trained, parts))
            for part in (self._lora, self._slider):
                if part is not None:
                    stack.enter_context(part.injected())
            if visits is not None:  # last, so that what comes and goes holds all of that
                stack.enter_context(visits.turns.taking() if in_turns else visits.both())
            self._denoisers, self._turns = {}, Turns({}) if visits is None else visits.turns
            try:
                yield
            finally:
                self._denoisers = None

    @contextmanager
    def _loaded(self, grad: bool, shape: tuple[int, ...]) -> Iterator[None]:
        """While entered, ComfyUI has loaded the models, and their weights are plain tensors."""
        model = self.model.model
        with (
            loaded(self.model, self.vaes, self.loaded_with, self._all_conditionings, shape),
            leave_inference_mode(grad),
            trainable_through([model, *(vae.first_stage_model for vae in self.vaes)], model.latent_format),
        ):
            yield

    @contextmanager
    def _borrowed(self, visits: Visits, grad: bool) -> Iterator[None]:
        """While entered, the models' weights are plain tensors in main memory."""
        with (
            loaded_beside(self.model, self.loaded_with, self._all_conditionings),
            leave_inference_mode(grad),
            visits.in_force(),
            trainable_through([], self.model.model.latent_format),
        ):
            yield

    def _denoiser(self, shape: tuple[int, ...]) -> Denoiser:
        if self._denoisers is None:
            raise GeneratorError("Expected estimate() inside `with generator.training():`.")
        if shape not in self._denoisers:
            parts = (self.model, self._conditionings, self._negative, self._cfg, shape, self._sigmas)
            self._denoisers[shape] = Denoiser(*parts, self._decode, self._turns)
        return self._denoisers[shape]

    # Its pictures

    def estimate(self, draw: Draw, needs: Collection[Need] = ("image", "prediction")) -> Estimate:
        """Clean image estimates, decoded by `gradient_vae` (paper, section 3.2); one forward pass with gradient.

        Call in `training`.

        Returns:
            Of `needs`: images [B, 3, H, W] float32, unclamped; predictions (x − x̂₀) / σ, float32: the velocity of a
            flow model, the noise of an ε-model, after guidance.

        Raises:
            GeneratorError: the draw does not fit this generator, or `training` has not been entered.
        """
        denoiser = self._denoiser(self._shape)
        self._check_draw(draw)
        self._slide(draw.sampling.slider)
        denoiser = denoiser.decoding_by(self._recomputed_in_turns(self._decode_for_gradient))
        return rollout.estimate(denoiser, draw, needs, self._scaled)

    def sample(
        self,
        prompt_indices: Sequence[int],
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        lora_scale: float = 1.0,
        *,
        sampling: Sampling = AS_GENERATOR,
    ) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], float32, by Euler's method: KSampler's with sampler "euler".

        Args:
            prompt_indices: one per picture.
            seeds: one per picture, 0 to 2^64 − 1; the noise is that of KSampler for this seed and one picture.
            num_inference_steps: None, or the generator's own number: the noise levels are fixed.
            lora_scale: strength of our LoRA; 1 is the model as trained, 0 exactly the user's model.
            sampling: another height and width in pixels than the LATENT's; steps and guidance come with the parts.

        Raises:
            GeneratorError: an index or a number of steps does not fit.
        """
        shape = self._shape_of(sampling)
        self._check_batch(
            prompt_indices, seeds, sampling.num_inference_steps if num_inference_steps is None else num_inference_steps
        )
        moved = self._offload or self.loaded_with is None
        self._slide(sampling.slider)
        with self._prepared(moved, True, grad=False, shape=shape), torch.no_grad(), self._scaled(lora_scale):
            return rollout.sample(self._denoiser(shape), prompt_indices, seeds)

    def _recomputed_in_turns(self, decode: Decoder) -> Callable[[Tensor], Tensor]:
        """Nothing of the decoder is kept while others work."""
        if self.keeps_graph and self._turns.entered:
            return partial(recomputed, decode)
        return decode

    # What it refuses

    def _check_batch(self, prompt_indices: Sequence[int], seeds: Sequence[int], steps: int | None) -> None:
        rollout.check_batch(self.num_prompts, prompt_indices, seeds)
        if steps not in (None, self.num_inference_steps):
            raise GeneratorError(
                f"Expected the sampler's own {self.num_inference_steps} steps, got {steps}. In ComfyUI the number of "
                "steps belongs to the generator: set it there."
            )

    @staticmethod
    def _check_guidance(sampling: Sampling) -> None:
        if sampling.guidance is not None:
            raise GeneratorError("In ComfyUI guidance comes with the CONDITIONING: use a FluxGuidance node, or cfg.")

    def _shape_of(self, sampling: Sampling) -> tuple[int, ...]:
        """The shape of one latent of this size in pixels."""
        self._check_guidance(sampling)
        factor = pixels_per_latent(self.model, self.vae)
        sides = [
            side if pixels is None else pixels / factor
            for side, pixels in zip(self._shape[-2:], (sampling.height, sampling.width), strict=True)
        ]
        if any(side < 1 or side != int(side) for side in sides):
            raise GeneratorError(
                f"Expected an image size in multiples of {factor} pixels, got {sampling.width} × {sampling.height} "
                "(width × height)."
            )
        return (*self._shape[:-2], *map(int, sides))

    def _check_draw(self, draw: Draw) -> None:
        self._check_batch(draw.prompt_indices, draw.noise_seeds, draw.sampling.num_inference_steps)
        self._check_guidance(draw.sampling)
        if draw.sampling.height is not None or draw.sampling.width is not None:
            raise GeneratorError("In ComfyUI the image size comes with the LATENT: choose it there.")
        rollout.check_point(draw, self.num_inference_steps)
