"""A LoRA as numbers, and its key names in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..core.errors import GeneratorError, LoraFileError
from .architectures import Architecture
from .architectures.layers import Host, Split
from .noise import seeded

Part = TypeVar("Part")
Format = Literal["diffusers", "comfyui", "kohya"]  # of files; a generator writes the first two
FORMATS: tuple[Host, ...] = ("diffusers", "comfyui")
MOST_SLIDER = 2.0
COMFYUI_PREFIX, KOHYA_PREFIX = "diffusion_model.", "lora_unet_"


class Shapes(NamedTuple):
    """Of the two matrices of a layer's LoRA, without the rank."""

    down: tuple[int, ...]  # [in], or of a convolution [in, kernel, kernel]
    up: tuple[int, ...]  # [out], or of a convolution [out, 1, 1]


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA that is trained: the layer `module` gains alpha / rank · B · A."""

    matrices: Mapping[str, tuple[Tensor, Tensor]]  # module -> A [rank, in, …], B [out, rank, …]
    rank: int
    alpha: float

    @property
    def layers(self) -> dict[str, LoraLayer]:
        return {name: LoraLayer(down, up, self.alpha) for name, (down, up) in self.matrices.items()}


class LoraLayer(NamedTuple):
    """What a file holds of one layer: alpha / len(down) · up · down."""

    down: Tensor
    up: Tensor
    alpha: float


def shapes_of(layer: torch.nn.Module) -> Shapes:
    """Of a linear layer or a convolution, from its own attributes: a quantised weight's shape may differ."""
    if hasattr(layer, "in_features"):
        return Shapes((layer.in_features,), (layer.out_features,))  # type: ignore[arg-type]
    return Shapes((layer.in_channels, *layer.kernel_size), (layer.out_channels, 1, 1))  # type: ignore[misc]


def is_grouped(layer: torch.nn.Module) -> bool:
    """Whether it is a convolution within groups of channels, of which a LoRA's rank would have to be a multiple."""
    return getattr(layer, "groups", 1) != 1


def gaussian_weights(shapes: Mapping[str, Shapes], rank: int, alpha: float, seed: int) -> LoraWeights:
    """A fresh LoRA for layers of `shapes`: A normal with deviation 1 / rank, B zero.

    Drawn on the CPU in the order of `shapes` from a generator of its own, the deviation as in PEFT's "gaussian".

    Raises:
        GeneratorError: the rank is not a positive integer, alpha not a finite positive number, or the seed none.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise GeneratorError(f"Expected a LoRA rank of at least 1, got {rank!r}.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise GeneratorError(f"Expected a LoRA alpha above 0, got {alpha!r}.")
    generator = seeded(seed)
    matrices = {
        name: (torch.randn(rank, *down, generator=generator) / rank, torch.zeros(up[0], rank, *up[1:]))
        for name, (down, up) in shapes.items()
    }
    return LoraWeights(matrices, rank, alpha)


def part_seeds(seed: int, slider: bool) -> tuple[int, ...]:
    """Of the constant part of a LoRA and, if it has one, of the part that a slider counts."""
    return (seed, (seed + 1) % 2**64) if slider else (seed,)


def slider_value(value: float | None) -> float:
    """How often a LoRA's second part counts; without a value not at all, which is the middle.

    Raises:
        GeneratorError: the value lies far outside of the range that was trained.
    """
    if value is None:
        return 0.0
    if not -MOST_SLIDER <= value <= MOST_SLIDER:
        raise GeneratorError(
            f"Expected a slider's value from -1 to 1, at most {MOST_SLIDER:g} beyond its middle, got {value:g}: "
            "outside of what was trained pictures fall apart."
        )
    return value


def with_slider(part: Part | None) -> Part:
    """The part that a slider counts. Raises GeneratorError where there is none."""
    if part is None:
        raise GeneratorError("Expected a LoRA with a slider, but this one has none.")
    return part


# From one host's layers to the other's


def fused(layers: Mapping[str, LoraLayer], splits: Iterable[Split]) -> dict[str, LoraLayer]:
    """diffusers' layers as ComfyUI's, exact.

    A native layer that stacks the outputs of k layers gets their A stacked, their B on a block diagonal, and so rank
    and alpha k times as large; one A is enough where all are the same.

    Raises:
        LoraFileError: a layer has no native name, or only some of a native layer's parts are there.
    """
    found: dict[str, LoraLayer] = {}
    left = dict(layers)
    for native, parts in splits:
        ours = [left.pop(part) for part in parts if part in left]
        if not ours:
            continue
        if len(ours) < len(parts):
            raise LoraFileError(
                f"ComfyUI's {native} is {', '.join(parts)} in one, and the LoRA changes only some of these. Keep it "
                "in diffusers' names, which ComfyUI reads as well."
            )
        first = ours[0]
        if len(ours) == 1:
            found[native] = first
        elif all(layer.alpha == first.alpha and torch.equal(layer.down, first.down) for layer in ours):
            found[native] = LoraLayer(first.down, torch.cat([layer.up for layer in ours]), first.alpha)
        else:
            ups = [layer.up * (layer.alpha / len(layer.down) * len(first.down) / first.alpha) for layer in ours]
            rank = sum(len(layer.down) for layer in ours)
            down = torch.cat([layer.down for layer in ours])  # [sum of ranks, in]
            found[native] = LoraLayer(down, torch.block_diag(*ups), first.alpha * rank / len(first.down))
    return _nothing_left(found, left, "ComfyUI")


def split(layers: Mapping[str, LoraLayer], splits: Iterable[Split]) -> dict[str, LoraLayer]:
    """ComfyUI's layers as diffusers', exact: A is shared by the parts, B is cut by rows.

    Raises:
        LoraFileError: a layer has no name in diffusers.
    """
    found: dict[str, LoraLayer] = {}
    left = dict(layers)
    for native, parts in splits:
        if native not in left:
            continue
        down, up, alpha = left.pop(native)
        if len(parts) == 1:
            found[parts[0]] = LoraLayer(down, up, alpha)
            continue
        # Query, key and value are as wide as the input; what is left belongs to the last part.
        widths = [down.shape[1]] * (len(parts) - 1)
        for part, rows in zip(parts, up.split([*widths, len(up) - sum(widths)]), strict=True):
            found[part] = LoraLayer(down, rows, alpha)
    return _nothing_left(found, left, "diffusers")


def _nothing_left(found: dict[str, LoraLayer], left: Mapping[str, LoraLayer], host: str) -> dict[str, LoraLayer]:
    if left:
        raise LoraFileError(
            f"{len(left)} of the LoRA's layers have no name in {host}, such as {next(iter(left))}. Save it in the "
            "other format, or train other layers."
        )
    return found


# Files


def write(layers: Mapping[str, LoraLayer], format: Format, architecture: Architecture | None) -> dict[str, Tensor]:
    """Tensors of a file, float32 copies on the CPU; the layers have the names of the format's host.

    Where the file may hold no alpha, B is scaled instead, so that strength 1.0 is the model as trained all the same.
    """
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        down, up, alpha = _keys(name, format, architecture)
        state[down], state[up] = _plain(layer.down), _plain(layer.up)
        if alpha is None:
            state[up] *= layer.alpha / len(layer.down)
        else:
            state[alpha] = torch.tensor(float(layer.alpha))
    return state


def _keys(name: str, format: Format, architecture: Architecture | None) -> tuple[str, str, str | None]:
    """Of the two matrices of a layer and its alpha.

    diffusers reads an alpha in PEFT's names only for some transformers; for a UNet it does in kohya's.
    """
    if format == "comfyui" or architecture is None:
        start, down, up = f"{COMFYUI_PREFIX}{name}", "lora_down", "lora_up"
    elif format == "kohya" or architecture.network == "unet":
        start, down, up = f"{KOHYA_PREFIX}{name.replace('.', '_')}", "lora_down", "lora_up"
    else:
        start, down, up = f"{architecture.network}.{name}", "lora_A", "lora_B"
    holds_alpha = format != "diffusers" or architecture is None or architecture.alphas
    return f"{start}.{down}.weight", f"{start}.{up}.weight", f"{start}.alpha" if holds_alpha else None


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def check_format(format: str) -> Host:
    """Raises GeneratorError unless a generator can write the format."""
    if format not in FORMATS:
        raise GeneratorError(f"Expected the LoRA format 'diffusers' or 'comfyui', got {format!r}.")
    return format  # type: ignore[return-value]


def read(
    state: Mapping[str, Tensor], shapes: Mapping[str, Shapes], format: Host, architecture: Architecture | None
) -> LoraWeights:
    """What `write` wrote, for layers of `shapes`, all of one rank and alpha.

    Raises:
        LoraFileError: keys are missing or unexpected, shapes differ, or the ranks or alphas are not all the same.
    """
    keys = {module: _keys(module, format, architecture) for module in shapes}
    _check_keys(state, {key for row in keys.values() for key in row if key is not None})
    rank = len(state[next(iter(keys.values()))[0]])
    alphas = {float(rank if alpha is None else state[alpha]) for _, _, alpha in keys.values()}
    if len(alphas) > 1:
        raise LoraFileError(f"Expected one alpha for all layers of the LoRA, got {sorted(alphas)[:4]}.")
    wanted: dict[str, tuple[int, ...]] = {}
    for module, shape in shapes.items():
        down, up, _ = keys[module]
        wanted[down], wanted[up] = (rank, *shape.down), (shape.up[0], rank, *shape.up[1:])
    _check_shapes(state, wanted)
    return LoraWeights({m: (state[down], state[up]) for m, (down, up, _) in keys.items()}, rank, alphas.pop())


def _check_keys(state: Mapping[str, Tensor], expected: set[str]) -> None:
    missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unexpected:
        raise LoraFileError(
            f"This LoRA is for another model: {len(missing)} of {len(expected)} keys are missing "
            f"({', '.join(missing[:3]) or 'none'}) and {len(unexpected)} are unexpected "
            f"({', '.join(unexpected[:3]) or 'none'}). Load the base model that it was trained on."
        )


def _check_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]]) -> None:
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(shape)}"
        for key, shape in wanted.items()
        if tuple(state[key].shape) != tuple(shape)
    ]
    if wrong:
        raise LoraFileError(
            f"This LoRA is for another model: {len(wrong)} shapes differ ({'; '.join(wrong[:3])}). "
            "Load the base model that it was trained on."
        )
