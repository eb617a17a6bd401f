"""A diffusers pipeline of any known architecture: clean image estimates, pictures, and the LoRA that is trained."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import GeneratorError
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
from ...core.quantization import quantization_of
from ...core.residency import Turns, visiting
from ...core.sizes import ModelSize
from ...core.streaming import Offload, Stream
from .. import rollout
from ..architectures.architecture import REFERENCE, Architecture, Config, Parts, Size
from ..architectures.layers import Split, splits
from ..lora import (
    LoraWeights,
    Shapes,
    check_format,
    fused,
    gaussian_weights,
    is_grouped,
    part_seeds,
    read,
    shapes_of,
    slider_value,
    with_slider,
    write,
)
from ..settings import GeneratorSettings, check_positive
from ..targets import chosen
from .compiling import compile_blocks
from .denoising import DECODER, NETWORK, TINY_DECODER, EncodedPrompts, PipelineDenoiser, decoding_parts
from .peft_lora import SLIDER_ADAPTER, AttachedLora
from .sizes import decoder_size, network_size
from .tiny_decoder import fitted

log = logging.getLogger(__name__)

DEFAULT_SIZE = 512  # pixels
TEXT = 256  # tokens of a prompt, where none has been encoded


class DiffusersGenerator:
    """A pipeline's network, VAE and scheduler as a `Generator`.

    Args:
        architecture: which family they are of.
        network: a transformer or UNet of our own (see `sharing.share_weights`), on its device, in eval mode.
        vae: with the network's latent channels, on the same device.
        scheduler: its configuration makes the noise levels; it is not stepped.
        prompts: encoded on any device.
        name: what a LoRA's metadata calls this model.
        settings: defaults of image size and steps; 512 × 512 and the architecture's steps where None.
        device: where it computes, None is where the network lies. Weights that lie elsewhere come to this device
            only inside `training` and `sample`.
        config: what the pipeline's own configuration says beside the network's.

    Raises:
        GeneratorError: settings, tiny decoder or scheduler do not fit the architecture.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: Any,
        vae: Any,
        scheduler: Any,
        prompts: EncodedPrompts,
        name: str,
        settings: GeneratorSettings | None = None,
        device: torch.device | None = None,
        config: Config | None = None,
    ) -> None:
        settings = settings or GeneratorSettings()
        self.architecture, self.network, self.vae = architecture, network, vae
        self.device, self.dtype = device or network.device, network.dtype
        own = architecture.path.own_scheduler(scheduler)
        self._parts = Parts(network, vae, own, {**network.config, **(config or {})}, self.dtype)
        tiny = settings.tiny_decoder
        self.tiny_decoder = None if tiny is None else fitted(tiny, architecture, self._parts, self.dtype)
        self._prompts = prompts.to(self.device, self.dtype)
        self._name = name
        self._info: ModelInfo | None = None
        self._lora: AttachedLora | None = None
        self._slider: AttachedLora | None = None  # what a slider counts, beside it
        self._steps = settings.num_inference_steps or architecture.steps(self._parts.config)
        self._height, self._width = settings.height or DEFAULT_SIZE, settings.width or DEFAULT_SIZE
        self._size(Sampling())
        self._arranged(settings.offload, settings.gradient_checkpointing)
        if settings.compile:
            compile_blocks(network)

    def arrange(self, offload: Offload, gradient_checkpointing: bool) -> None:
        """From now on the weights lie, and blocks are computed again, as `load_generator` says of these arguments.

        The numbers stay. Call it outside `training`.
        """
        home = torch.device("cpu") if offload else self.device
        for part in self._models():
            part.to(home)
        for parameter in self._trained().values():  # computes where the network does
            parameter.data = parameter.data.to(self.device)
        self._arranged(offload, gradient_checkpointing)

    def _arranged(self, offload: Offload, gradient_checkpointing: bool) -> None:
        whole = partial(visiting, [self.network], self.device)
        self._visits = {
            NETWORK: Stream(self.network, self.device).running if offload == "blocks" else whole,
            DECODER: partial(visiting, decoding_parts(self.vae), self.device),
        }
        if self.tiny_decoder is not None:
            self._visits[TINY_DECODER] = partial(visiting, decoding_parts(self.tiny_decoder), self.device)
        self._turns = Turns(self._visits)
        self.keeps_graph = gradient_checkpointing  # else it would keep the weights on the device
        for part in self._models():
            if gradient_checkpointing and part._supports_gradient_checkpointing:
                part.enable_gradient_checkpointing()
            elif part.is_gradient_checkpointing:
                part.disable_gradient_checkpointing()

    def _models(self) -> list[Any]:
        return [part for part in (self.network, self.vae, self.tiny_decoder) if part is not None]

    # What it is

    @property
    def num_prompts(self) -> int:
        return len(self._prompts.texts)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts' texts."""
        return self._prompts.texts

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → float32 latents [B, C, h, w] on the CPU, as `show_references` takes them.

        Raises:
            GeneratorError: the network reads no picture beside its own.
        """
        refer = self.architecture.refer
        if refer is None:
            raise GeneratorError(
                f"{self.architecture.label} reads no reference picture. Of diffusers' pipelines Flux.1's do, best "
                "Flux Kontext."
            )
        with visiting([self.vae], self.device):
            return refer(self.vae, pictures.to(self.device) * 2 - 1).float().cpu()  # [0, 1] -> [-1, 1]

    def show_references(self, references: Sequence[Tensor] | None) -> None:
        """From now on the network sees a picture beside each prompt, as Flux Kontext does; None takes them away.

        Args:
            references: latents [1, C, h, w] for each prompt, all of one size, such as a canvas's or those of `encode`.

        Raises:
            GeneratorError: their number, shape or sizes are others, or the network reads no picture beside its own.
        """
        rows = [{n: t for n, t in row.items() if n != REFERENCE} for row in self._prompts.conditions]
        if references is not None:
            latents = self._checked_references(references)
            rows = [{**row, REFERENCE: latent} for row, latent in zip(rows, latents, strict=True)]
        self._prompts = replace(self._prompts, conditions=tuple(rows))

    def _checked_references(self, references: Sequence[Tensor]) -> list[Tensor]:
        channels, patch = self.architecture.channels(self._parts.config), self.architecture.patch
        shapes = {tuple(latent.shape) for latent in references}
        shape = next(iter(shapes), ())
        right = len(shapes) == 1 and len(shape) == 4 and shape[:2] == (1, channels)
        right &= not any(side % patch for side in shape[2:]) and len(references) == self.num_prompts
        if self.architecture.refer is None or not right:
            raise GeneratorError(
                f"Expected a reference for each of {self.num_prompts} prompts, latents [1, {channels}, h, w] of one "
                f"size with sides that {patch} divides, for a network that reads them, got {len(references)} of the "
                f"shapes {sorted(shapes)} for {self.architecture.label}. Make them by `encode`."
            )
        return [latent.to(self.device, self.dtype) for latent in references]

    @property
    def num_inference_steps(self) -> int:
        """Default number of sampler steps."""
        return self._steps

    @property
    def pixels(self) -> tuple[int, int]:
        """Default height and width of pictures."""
        return self._height, self._width

    @property
    def info(self) -> ModelInfo:
        """Name, architecture (such as "flux-1-schnell"), dtype and a hash of the base weights, cached."""
        if self._info is None:
            architecture = self.architecture.name(self._parts.config)
            digest = weights_sha256(self._base_parameters())
            dtype = ", ".join(filter(None, (quantization_of(self.network), str(self.dtype).removeprefix("torch."))))
            tiny = "" if self.tiny_decoder is None else f"gradients by the tiny decoder {_name(self.tiny_decoder)}"
            self._info = ModelInfo(self._name, architecture, dtype, digest, tiny)
        return self._info

    def _base_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names as they are without PEFT, whatever adapters are attached."""
        for prefix, model in ((self.architecture.network, self.network), ("vae", self.vae)):
            for name, parameter in model.named_parameters():
                if ".lora_" not in name:
                    yield f"{prefix}.{name.replace('.base_layer.', '.')}", parameter

    def sizes(
        self, samples: int, rank: int, targets: str = ATTENTION_AND_FEED_FORWARD, bits: str | None = None
    ) -> tuple[ModelSize, ModelSize, int]:
        """What network and decoder take on the device for so many samples, and the bytes of a LoRA.

        Nothing is computed, and no weight is read: they may lie on the device "meta".

        Args:
            bits: what the network's weights would be quantised to: None (as they are), "8bit" or "4bit".
        """
        size, guidance = self._size(Sampling()), self.architecture.guidance(self._parts.config)
        guided = self._prompts.empty is not None
        if not self._prompts.texts:  # none has been encoded
            guided = guidance.kind == "cfg" and guidance.default > guidance.off
        sequences = [t.shape[1] for row in self._prompts.conditions for t in row.values() if t.ndim > 2]
        text = max(sequences, default=TEXT)
        lora = sum(rank * (prod(shape.down) + prod(shape.up)) for shape in self._lora_shapes(targets).values())
        network = network_size(self.architecture, self.network, size, text, samples * (1 + guided), bits)
        return network, decoder_size(self.architecture, self.vae, size, samples), lora * torch.float32.itemsize

    # Its LoRA

    def _lora_shapes(self, targets: str) -> dict[str, Shapes]:
        """Of the layers that the targets choose; a layer that ComfyUI fuses with others is chosen with them."""
        modules = dict(self.network.named_modules())
        found = [row for row in self._splits() if all(part in modules for part in row[1])]
        layers = [row for row in found if not any(is_grouped(modules[part]) for part in row[1])]
        if left_out := len(found) - len(layers):
            log.info("The LoRA leaves out %d convolutions within groups of channels: its rank is too low.", left_out)
        picked = chosen([(*parts, native) for native, parts in layers], targets)
        names = [part for (_, parts), take in zip(layers, picked, strict=True) if take for part in parts]
        return {name: shapes_of(modules[name]) for name in names}

    def _splits(self) -> list[Split]:
        """Every layer of the architecture's table in the network's blocks; a network may lack some of them."""
        names = [name for name, _ in self.network.named_modules()]
        return list(splits(self.architecture.blocks, names, "diffusers"))

    def add_lora(
        self, rank: int, alpha: float, seed: int, targets: str = ATTENTION_AND_FEED_FORWARD, slider: bool = False
    ) -> None:
        """Attaches a fresh LoRA, Gaussian A from `seed` and zero B, in place of any other of ours.

        Args:
            targets: see `targets.chosen`.
            slider: whether there is a second one, which counts as often as `Sampling.slider` says.

        Raises:
            GeneratorError: rank or alpha is not positive, no layer is chosen, or the user has fused another LoRA.
        """
        shapes = self._lora_shapes(targets)
        parts = [gaussian_weights(shapes, rank, alpha, own) for own in part_seeds(seed, slider)]
        self._attach(*parts)

    def _attach(self, weights: LoraWeights, slider: LoraWeights | None = None) -> None:
        self.remove_lora()
        self._lora = AttachedLora(self.network, weights, device=self.device)
        if slider is not None:
            self._slider = AttachedLora(self.network, slider, SLIDER_ADAPTER, self.device)

    def remove_lora(self) -> None:
        """Gives back the base model; nothing happens if no LoRA of ours is attached."""
        for part in (self._slider, self._lora):
            if part is not None:
                part.remove()
        self._slider = self._lora = None

    def _attached(self) -> AttachedLora:
        if self._lora is None:
            raise GeneratorError("Expected a LoRA, but none is attached. Call add_lora(rank, alpha, seed) first.")
        return self._lora

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's trainable float32 tensors by names such as "transformer_blocks.0.attn.to_q.lora_A".

        Raises:
            GeneratorError: no LoRA is attached.
        """
        self._attached()
        return self._trained()

    def _trained(self) -> dict[str, nn.Parameter]:
        own = {} if self._lora is None else self._lora.parameters()
        counted = {} if self._slider is None else self._slider.parameters()
        return own | {f"{SLIDER}{name}": parameter for name, parameter in counted.items()}

    def lora_state_dict(self, format: str = "diffusers", slider: bool = False) -> dict[str, Tensor]:
        """Copies of the LoRA's tensors with `.alpha`, float32 on the CPU, so that strength 1.0 is the model as trained.

        Args:
            format: "diffusers" for `load_lora_weights` and recent ComfyUI, "comfyui" for the native, fused names. Where
                diffusers reads no `.alpha`, B is scaled instead.
            slider: the part that a slider counts, instead of the constant one.

        Raises:
            GeneratorError: another format, or no LoRA is attached, or none with a slider.
            LoraFileError: a layer has no name in ComfyUI.
        """
        part = self._attached()
        if slider:
            part = with_slider(self._slider)
        layers = part.weights().layers
        if check_format(format) == "comfyui":
            layers = fused(layers, self._splits())
        return write(layers, check_format(format), self.architecture)

    def load_lora_state_dict(
        self,
        state: Mapping[str, Tensor],
        targets: str = ATTENTION_AND_FEED_FORWARD,
        slider: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Attaches the LoRA that `lora_state_dict("diffusers")` wrote, with the rank and alpha in it, in place of ours.

        Args:
            slider: the part that a slider counts, if it has one.

        Raises:
            LoraFileError: keys are missing or unexpected, or shapes differ; the attached LoRA is then untouched.
        """
        shapes = self._lora_shapes(targets)
        states = [state] if slider is None else [state, slider]
        self._attach(*(read(part, shapes, "diffusers", self.architecture) for part in states))

    @contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        with ExitStack() as stack:
            for part in (self._lora, self._slider):
                if part is not None and scale != 1:
                    stack.enter_context(part.scaled(scale))
            yield

    def _slide(self, value: float | None) -> None:
        if self._slider is not None:
            self._slider.count(slider_value(value))

    @contextmanager
    def training(self, in_turns: bool = False) -> Iterator[DiffusersGenerator]:
        """While entered, the weights are on `device`, and only our LoRA requires gradients; restored afterwards.

        Make the backward pass inside, too: with gradient checkpointing it runs the model again. With `in_turns`
        network and decoder are there only while they work, forward and backward, and where there is gradient
        checkpointing the backward pass may be made in a later session.
        """
        with self._frozen(), self._turns.taking() if in_turns else self._here():
            yield self

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """While entered, only our LoRA requires gradients, and all else may visit the device."""
        ours = {id(parameter) for parameter in self._trained().values()}
        models = [model for model in (self.network, self.vae, self.tiny_decoder) if model is not None]
        parameters = chain.from_iterable(model.parameters() for model in models)
        frozen = [p for p in parameters if p.requires_grad and id(p) not in ours]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    @contextmanager
    def _here(self) -> Iterator[None]:
        with ExitStack() as stack:
            for visit in self._visits.values():
                stack.enter_context(visit())
            yield

    # Its pictures

    def estimate(self, draw: Draw, needs: Collection[Need] = ("image", "prediction")) -> Estimate:
        """Clean image estimates, decoded, by the tiny decoder if there is one.

        One forward pass with gradient, two with classifier-free guidance.

        Returns:
            Images [B, 3, H, W] float32, unclamped; predictions, float32, in the network's layout: the velocity of a
            flow, the noise of a diffusion model, after guidance.

        Raises:
            GeneratorError: the draw does not fit this generator.
        """
        denoiser = self._denoiser(draw.prompt_indices, draw.noise_seeds, draw.sampling, tiny_decoder=self.tiny_decoder)
        rollout.check_point(draw, len(denoiser.sigmas) - 1)
        self._slide(draw.sampling.slider)
        return rollout.estimate(denoiser, draw, needs, self._scaled)

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
        """Pictures by Euler's method, equal to the pipeline's from the same latents.

        Args:
            prompt_indices: one per picture.
            seeds: one per picture, 0 to 2^64 − 1.
            num_inference_steps: goes before that of `sampling`.
            lora_scale: strength of our LoRA; 1 is the model as trained, 0 exactly the base model.
            sampling: sampler steps, size (pixels that the latents' patches divide), and guidance, None for the
                architecture's own.

        Returns:
            [B, 3, H, W] float32 in [0, 1], in the order asked for.

        Raises:
            GeneratorError: an index, size or number of steps is out of range, or the model has no guidance to set.
        """
        denoiser = self._denoiser(prompt_indices, seeds, sampling, num_inference_steps)
        here = nullcontext() if self._turns.entered else self._here()
        self._slide(sampling.slider)
        with self._frozen(), here, self._scaled(lora_scale):
            return rollout.sample(denoiser, prompt_indices, seeds)

    def _denoiser(
        self,
        prompts: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        steps: int | None = None,
        tiny_decoder: Any = None,
    ) -> PipelineDenoiser:
        rollout.check_batch(self.num_prompts, prompts, seeds)
        steps = sampling.num_inference_steps if steps is None else steps
        check_positive("num_inference_steps", steps)
        size, guidance = self._size(sampling), self._guidance(sampling)
        return PipelineDenoiser(
            *(self.architecture, self._parts, self._prompts, size, steps or self._steps, guidance, self.device),
            *(self._turns, tiny_decoder, self.keeps_graph and not self.vae._supports_gradient_checkpointing),
        )

    # What it refuses

    def _size(self, sampling: Sampling) -> Size:
        check_positive("height", sampling.height)
        check_positive("width", sampling.width)
        height, width = sampling.height or self._height, sampling.width or self._width
        factor = self.architecture.factor(self.vae)
        multiple = factor * self.architecture.patch
        if height % multiple or width % multiple:
            raise GeneratorError(
                f"Expected an image size in multiples of {multiple} pixels, got {width} × {height} (width × height)."
            )
        return Size(self.architecture.channels(self._parts.config), height // factor, width // factor)

    def _guidance(self, sampling: Sampling) -> float | None:
        own = self.architecture.guidance(self._parts.config)
        if own.kind == "none" and sampling.guidance is not None and sampling.guidance > own.off:
            raise GeneratorError(
                f"{self.info.architecture} is distilled from a guided model and takes no guidance, but a guidance of "
                f"{sampling.guidance:g} was asked for. Leave guidance out, or set it to {own.off:g}."
            )
        return own.default if sampling.guidance is None else sampling.guidance


def _name(decoder: Any) -> str:
    return Path(decoder.config.get("_name_or_path") or type(decoder).__name__).name
