"""Frozen linear layers of 4 or 8 bits a weight, made of plain tensors, of which autograd keeps nothing.

bitsandbytes' own layers hide some tensors in objects beside their weights, and its autograd functions keep weights or
inputs past gradient checkpointing. These hold the same numbers as a parameter and a buffer, so that they move,
stream and are shared as all other weights, and multiply by bitsandbytes' kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NF4_BLOCK = 64  # weights to a scale
INT8_THRESHOLD = 6.0  # LLM.int8: columns of an input with larger numbers are not rounded
FP8 = torch.float8_e4m3fn

logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # notes each cast of an input to float16


class QuantizedLinear(nn.Linear):
    """A frozen linear layer; the backward pass computes its weights again from what is kept of them.

    Args:
        weight: packed numbers.
        scales: float32, what they are multiplied by.
        bias: [out], or None.
        features: (out, in).
        compute_dtype: which the product is made in; None is the input's.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        weight: Tensor,
        scales: Tensor,
        bias: nn.Parameter | None,
        features: tuple[int, ...],
        compute_dtype: torch.dtype | None,
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = features
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]
        self.scales: Tensor
        self.register_buffer("scales", scales)
        self.compute_dtype = compute_dtype

    def forward(self, input: Tensor) -> Tensor:
        return _FrozenProduct.apply(input, self)  # type: ignore[return-value]

    def values(self, dtype: torch.dtype) -> Tensor:
        """The weights that the numbers stand for, [out, in]."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.values(x.dtype), self._bias(x))

    def _bias(self, x: Tensor) -> Tensor | None:
        return None if self.bias is None else self.bias.to(x.dtype)

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Packed numbers and scales of a weight [out, in]."""
        raise NotImplementedError


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x.to(layer.compute_dtype or x.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].to(ctx.layer.compute_dtype or grads[0].dtype)
        return (grad @ ctx.layer.values(grad.dtype)).to(grads[0].dtype), None


class Fp8Linear(QuantizedLinear):
    """float8 (e4m3) with a scale for each output; its bytes are kept as integers, so that no dtype change hits them."""

    kind = "fp8"

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(FP8).max
        return (weight.float() / scales[:, None]).to(FP8).view(torch.uint8), scales

    def values(self, dtype: torch.dtype) -> Tensor:
        return self.weight.view(FP8).to(dtype).mul_(self.scales[:, None])


class Int8Linear(QuantizedLinear):
    """LLM.int8 (Dettmers et al. 2022): int8 with a scale for each output; inputs are rounded to 8 bits as well."""

    kind = "8bit"
    threshold = INT8_THRESHOLD

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import int8_vectorwise_quant

        return int8_vectorwise_quant(weight.to(torch.float16))[:2]

    def values(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype, copy=True).mul_(self.scales[:, None] / 127)

    def product(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        state = bnb.MatmulLtState(CB=self.weight.data, SCB=self.scales)
        state.has_fp16_weights = state.is_training = False
        rows = x.reshape(-1, self.in_features)
        output = bnb.matmul(rows, self.weight, bias=self._bias(x), state=state, threshold=self.threshold)
        return output.view(*x.shape[:-1], self.out_features)


class Nf4Linear(QuantizedLinear):
    """4-bit normal float (QLoRA, Dettmers et al. 2023), two weights to a byte, with a scale for each block."""

    kind = "4bit"
    quant_type, block = "nf4", NF4_BLOCK

    @classmethod
    def pack(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.contiguous(), blocksize=cls.block, quant_type=cls.quant_type)
        return packed, state.absmax

    def _state(self, dtype: torch.dtype) -> Any:
        from bitsandbytes.functional import QuantState

        shape, code = torch.Size((self.out_features, self.in_features)), _code(self.quant_type, self.weight.device)
        return QuantState(self.scales, shape, code, self.block, self.quant_type, dtype)

    def values(self, dtype: torch.dtype) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.data, self._state(dtype))

    def product(self, x: Tensor) -> Tensor:
        import bitsandbytes as bnb

        return bnb.matmul_4bit(x, self.weight.data.t(), self._state(x.dtype), bias=self._bias(x))


@cache
def _code(quant_type: str, device: torch.device) -> Tensor:
    """The 16 numbers that 4 bits can be."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type(quant_type, device)


KINDS: dict[str, type[QuantizedLinear]] = {cls.kind: cls for cls in (Int8Linear, Nf4Linear, Fp8Linear)}


def check_quantization(kind: object, allowed: Collection[str], error: type[Exception]) -> None:
    """Raises `error` unless it is None or one of `allowed`, and its library is there."""
    if kind is None:
        return
    if kind not in allowed:
        *names, last = (repr(name) for name in (None, *allowed))
        raise error(f"Expected the quantization {', '.join(names)} or {last}, got {kind!r}.")
    if kind != "fp8" and find_spec("bitsandbytes") is None:
        raise error(f"The quantization {kind!r} needs bitsandbytes: pip install bitsandbytes.")


def quantization_of(module: nn.Module) -> str | None:
    """The kind of the module's quantised layers, None if it has none."""
    return next((part.kind for part in module.modules() if isinstance(part, QuantizedLinear)), None)


def quantize(
    network: nn.Module, kind: str, device: torch.device, home: torch.device, keep: Collection[str] = ()
) -> None:
    """Replaces every linear layer by a quantised one.

    Args:
        kind: one of `KINDS`.
        device: where the numbers are found, layer by layer.
        home: where they stay.
        keep: names of parts that stay as they are.
    """
    names = [name for name, part in network.named_modules() if type(part) is nn.Linear]
    for name in names:
        if not any(part in keep for part in name.split(".")):
            layer: Any = network.get_submodule(name)
            weight = layer.weight.detach()
            packed, scales = (tensor.to(home) for tensor in KINDS[kind].pack(weight.to(device)))
            bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(home), requires_grad=False)
            _replace(network, name, KINDS[kind](packed, scales, bias, tuple(weight.shape), weight.dtype))


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def take_over(model: nn.Module, error: type[Exception]) -> None:
    """Replaces bitsandbytes' layers in a model by ours over the same packed weights.

    Raises:
        `error`: see `taken_over`.
    """
    for name in [name for name, part in model.named_modules() if is_bitsandbytes(part)]:
        _replace(model, name, taken_over(model.get_submodule(name), error))


def is_bitsandbytes(module: nn.Module) -> bool:
    """Whether it is one of bitsandbytes' linear layers; PEFT's around them are not."""
    return any(cls.__module__ == "bitsandbytes.nn.modules" for cls in type(module).__mro__) and isinstance(
        module, nn.Linear
    )


def taken_over(layer: Any, error: type[Exception]) -> QuantizedLinear:
    """Our layer over the packed weights of one of bitsandbytes', which stays as it is.

    Raises:
        `error`: its weights are not packed yet, or have been packed anew for inference on the CPU.
    """
    state = getattr(layer.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise error(
            "Expected bitsandbytes' 4-bit weights as they are loaded, but they have been run on the CPU, for which "
            "bitsandbytes packs them anew. Load the model again."
        )
    features = layer.out_features, layer.in_features
    if state is not None:
        packed = layer.weight.data.as_subclass(Tensor).view(torch.uint8).view(-1, 1)
        four = Nf4Linear(packed, _absmax(state), layer.bias, features, layer.compute_dtype)
        four.block, four.quant_type = state.blocksize, state.quant_type
        return four
    scales = getattr(layer.weight, "SCB", None)
    scales = layer.state.SCB if scales is None and hasattr(layer, "state") else scales
    if scales is None:
        raise error(
            f"Expected bitsandbytes' layers with packed weights, got a {type(layer).__name__} of {layer.weight.dtype} "
            "numbers. Load the model with its quantization_config."
        )
    eight = Int8Linear(layer.weight.data.as_subclass(Tensor), scales, layer.bias, features, None)
    eight.threshold = layer.state.threshold
    return eight


def _absmax(state: Any) -> Tensor:
    """The scale of each block, which may itself be packed."""
    from bitsandbytes.functional import dequantize_blockwise

    if not state.nested:
        return state.absmax.float()
    return dequantize_blockwise(state.absmax, state.state2).float() + state.offset
