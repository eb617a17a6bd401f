"""What the engine asks of its collaborators, as protocols: generators, critics and overlays implement them apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from .picture import Picture


@dataclass(frozen=True)
class Sampling:
    """How pictures are sampled, in training and in every evaluation alike; None is the generator's own default."""

    num_inference_steps: int | None = None
    guidance: float | None = None
    height: int | None = None  # pixels
    width: int | None = None
    slider: float | None = None  # value of a LoRA with a slider, −1 … 1; None is 0, its constant part alone


AS_GENERATOR = Sampling()
ATTENTION, ATTENTION_AND_FEED_FORWARD, ALL_LINEAR = "attention", "attention + feed-forward", "all linear"
FIRST_HALF, LAST_HALF = ", first half", ", last half"  # behind any choice of layers: only those of half of the blocks
_WHOLE = (ATTENTION, ATTENTION_AND_FEED_FORWARD, ALL_LINEAR)
# Or a regular expression for layer names.
LORA_TARGETS = (*_WHOLE, *(f"{t}{half}" for half in (LAST_HALF, FIRST_HALF) for t in _WHOLE))
SLIDER = "slider."  # before the parameter names of what a slider counts, beside the constant part of a LoRA
PRESET = "dual_process.preset"  # the attachment of a ComfyUI MODEL that names its preset


def slider_values(count: int) -> tuple[float, ...]:
    """So many values of a slider, evenly from one end to the other; of one, the middle."""
    return (0.0,) if count == 1 else tuple(2 * number / (count - 1) - 1 for number in range(count))


@dataclass(frozen=True)
class Draw:
    """Everything that one batch of clean image estimates depends on, besides the weights: B samples.

    With `renoise_times` None, sample b is rolled out from pure noise through its first `sampler_steps[b]` of
    `num_inference_steps` steps without gradient, and the next step is made with gradient (paper, section 3.2). With
    `renoise_times`, the sample is generated fully and noised again to that time by `renoise_seeds[b]`.
    """

    prompt_indices: tuple[int, ...]
    noise_seeds: tuple[int, ...]
    sampler_steps: tuple[int, ...]  # index of the step made with gradient, 0 … num_inference_steps − 1
    sampling: Sampling = AS_GENERATOR
    renoise_times: tuple[float, ...] | None = None  # flow-matching time in (0, 1], 1 = pure noise
    renoise_seeds: tuple[int, ...] | None = None
    base_trajectory: bool = False  # whether the roll-out is the base model's own, without LoRA


Need = Literal["image", "prediction", "base_image", "base_prediction"]  # the fields of an Estimate


@dataclass(frozen=True)
class Estimate:
    """Clean image estimates at the point that a draw names; None is what was not asked for.

    `image` and `prediction` have their graph back to the LoRA. The others are the base model's at the same point,
    without LoRA and without gradient.
    """

    image: Tensor | None = None  # [B, 3, H, W], decoded, [0, 1] is the displayable range but nothing is clamped
    prediction: Tensor | None = None  # the network's output (velocity or noise), [B, ...]
    base_image: Tensor | None = None
    base_prediction: Tensor | None = None

    def get(self, need: Need) -> Tensor:
        value = getattr(self, need)
        assert value is not None, f"the estimate was not asked for its {need}"
        return value


@dataclass(frozen=True)
class ModelInfo:
    """What a LoRA's metadata says of a model that took part in its making."""

    name: str
    architecture: str
    dtype: str
    weights_sha256: str
    settings: str = ""  # what else the numbers depend on, in words

    def to_dict(self) -> dict[str, str]:
        return {name: value for name, value in vars(self).items() if value or name != "settings"}


class Generator(Protocol):
    """An image generator that holds encoded prompts and at most one trainable LoRA."""

    @property
    def num_prompts(self) -> int: ...

    @property
    def prompts(self) -> Sequence[str] | None:
        """The prompts' texts, None where only encodings are known."""
        ...

    @property
    def num_inference_steps(self) -> int:
        """Default number of sampler steps."""
        ...

    @property
    def info(self) -> ModelInfo: ...

    def add_lora(
        self, rank: int, alpha: float, seed: int, targets: str = ATTENTION_AND_FEED_FORWARD, slider: bool = False
    ) -> None:
        """Attaches a fresh LoRA, Gaussian A from `seed` and zero B, in place of any other of ours.

        With `slider` there are two of this rank: the second counts as often as `Sampling.slider` says.

        `targets` says which layers of the network's blocks it changes: one of `LORA_TARGETS`, all linear ones being
        those of the blocks, or a regular expression that a layer's whole name must match. With `FIRST_HALF` or
        `LAST_HALF` behind it only that half of the blocks is changed; no graph is kept of those before the last half.
        """
        ...

    def lora_parameters(self) -> Mapping[str, nn.Parameter]:
        """The LoRA's trainable tensors by stable names, in fp32; everything else is frozen."""
        ...

    @property
    def keeps_graph(self) -> bool:
        """Whether the graph of an estimate outlives `training(in_turns=True)`, for a backward pass in a later one."""
        ...

    def training(self, in_turns: bool = False) -> AbstractContextManager[Any]:
        """While entered, `estimate` carries gradients; afterwards the model is as it was before.

        With `in_turns` only what works has to lie on the device, part by part.
        """
        ...

    def estimate(self, draw: Draw, needs: Collection[Need] = ("image", "prediction")) -> Estimate:
        """Clean image estimates, of which only `needs` are made; deterministic and repeatable from the draw."""
        ...

    def sample(
        self,
        prompt_indices: Sequence[int],
        seeds: Sequence[int],
        num_inference_steps: int | None = None,
        lora_scale: float = 1.0,
        *,
        sampling: Sampling = AS_GENERATOR,
    ) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], no gradient; `lora_scale` 0 is the base model.

        `num_inference_steps` goes before `sampling`'s.
        """
        ...

    def lora_state_dict(self, format: str = "diffusers", slider: bool = False) -> dict[str, Tensor]:
        """The LoRA with `.alpha` under the key names of "diffusers" or "comfyui"; with `slider` its second part."""
        ...


class AskedQuestion(Protocol):
    """What a critic needs to know of a question."""

    @property
    def text(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def references(self) -> tuple[Picture, ...]:
        """Pictures that are shown behind the judged one."""
        ...


class Critic(Protocol):
    """A frozen vision-language model that rates pictures."""

    @property
    def info(self) -> ModelInfo: ...

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question), [B, Q] for images [B, 3, H, W] in [0, 1]; differentiable in `images`."""
        ...

    def answer(
        self, images: Tensor, text: str, max_new_tokens: int = 16, references: Sequence[Picture] = ()
    ) -> list[str]:
        """The greedy reply to one question about each of images [B, 3, H, W], shown with the references behind it."""
        ...


@runtime_checkable
class Resident(Protocol):
    """A critic whose weights are on its device only while it works."""

    def resident(self) -> AbstractContextManager[Any]:
        """While entered, the weights are there; the backward pass is made inside, too."""
        ...


@runtime_checkable
class Overlay(Protocol):
    """A visual prompt."""

    def apply(self, images: Tensor) -> Tensor:
        """Composites the overlay over images [B, 3, H, W] in [0, 1]; differentiable."""
        ...

    def to_dict(self) -> Any:
        """Plain data that writes the overlay down."""
        ...


@runtime_checkable
class RangedOverlay(Overlay, Protocol):
    """A visual prompt that follows a slider."""

    def at(self, value: float) -> Overlay:
        """What is drawn at a value of the slider, −1 … 1."""
        ...

    def describe(self, value: float) -> str:
        """What the control is at a value of the slider, in its own unit."""
        ...


class SpeakingOverlay(Overlay, Protocol):
    """One that knows what to ask; the wanted answers are Yes."""

    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """Of each thing that is drawn the wordings of its question."""
        ...

    def guards(self) -> tuple[str, ...]:
        """Questions to ask without the overlay, so that the instruction itself is not painted."""
        ...
