"""Real module code at full size without its numbers: bytes alive and arithmetic, by part.

Large float tensors are fake (they have a shape and no memory); integers, masks and small tensors are real, so that
index arithmetic and `.tolist()` work. What is read from a fake tensor as a number is 0.5, True or 1. RMSNorm counts as
one kernel, as on CUDA. Not counted: the context of the device (about 0.5 GiB), workspaces, fragmentation.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
GiB = 2**30
REAL = 4096  # floats up to which a tensor keeps its numbers
INDICES = 1 << 22  # and integers
FACTORIES = ("arange", "linspace", "scalar_tensor", "randint", "randperm")
FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(
        grad.shape, q.shape, k.shape, v.shape
    ),
}


class Ledger(TorchDispatchMode):
    """What is alive, and what has been computed, at each moment of a program.

    Args:
        card_of: the card that what goes by a name lies on; all on one unless told otherwise.

    Attributes:
        peak: most bytes alive at once on one card since `reset`.
        peak_phase: what was being done then.
        at_peak: bytes by name then, on that card.
        peaks, peaks_by_card: most bytes alive at once on one card, by phase and by card.
        flops: by phase.
    """

    def __init__(self, card_of: Callable[[str], int] = lambda name: 0) -> None:
        super().__init__()
        self.card_of = card_of
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._live: dict[int, tuple[int, str]] = {}  # storage -> its bytes and name
        self._bytes: defaultdict[str, int] = defaultdict(int)  # by name
        self._away: dict[str, int] = {}
        self._phase = "other"
        self.now: Counter[int] = Counter()  # by card
        self.reset()

    def reset(self) -> None:
        """Counts anew from here."""
        self.peak, self.peak_phase, self.at_peak = 0, "", {}
        self.peaks: defaultdict[str, int] = defaultdict(int)
        self.peaks_by_card: defaultdict[int, int] = defaultdict(int)
        self.flops: defaultdict[str, int] = defaultdict(int)
        self.moved = 0
        self._mark()

    # What runs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        if func is aten._local_scalar_dense.default and fakes:
            dtype = fakes[0].dtype
            return True if dtype == torch.bool else 0.5 if dtype.is_floating_point else 1
        if not fakes and _stays_real(func, tensors, args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _without_masks(args[1]), *args[2:])
        with self.fake:
            out = func(*args, **kwargs)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops[self.phase] += count(*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._see(leaf)
        return out

    @property
    def phase(self) -> str:
        """What is being done: a watched module's name, with " backward" in its backward pass."""
        if torch._C._current_graph_task_id() == -1 and self._phase.endswith("backward"):
            return "other"
        return self._phase

    def watch(self, module: nn.Module, name: str) -> None:
        """Work of `module` is called by this name, its backward pass with " backward" behind it."""
        outer: list[str] = []

        def before(*_: Any) -> None:
            outer.append(self._phase)
            if torch._C._current_graph_task_id() == -1:  # else it is recomputed, which is a part of the backward pass
                self._phase = name if torch.is_grad_enabled() else f"{name} (no gradient)"

        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._phase = outer.pop()
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(lambda grad: setattr(self, "_phase", f"{name} backward"))
                    return

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)

    # What is alive

    def _see(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            name = f"made in {self.phase}"
            self._live[key] = (storage.nbytes(), name)
            self._count(name, storage.nbytes())
            weakref.finalize(storage, self._gone, key)
            self._mark()
        return key

    def _gone(self, key: int) -> None:
        size, name = self._live.pop(key)
        self._count(name, -size)

    def _count(self, name: str, size: int) -> None:
        self._bytes[name] += size
        self.now[self.card_of(name)] += size

    def _mark(self) -> None:
        for card, now in self.now.items():
            self.peaks[self.phase] = max(self.peaks[self.phase], now)
            self.peaks_by_card[card] = max(self.peaks_by_card[card], now)
            if now > self.peak:
                self.peak, self.peak_phase = now, self.phase
                here = {name: size for name, size in self._bytes.items() if self.card_of(name) == card}
                self.at_peak = {name: size - self._away.get(name, 0) for name, size in here.items()}

    def name(self, tensors: Iterable[Tensor], name: str) -> None:
        """What these tensors are called from now on, such as "weights of the critic"."""
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                key = self._see(tensor)
                size, old = self._live[key]
                self._live[key] = (size, name)
                self._count(old, -size)
                self._count(name, size)

    def leave(self, name: str) -> None:
        """What goes by this name is no longer on the device."""
        if name not in self._away:
            self._away[name] = self._bytes[name]
            self.now[self.card_of(name)] -= self._bytes[name]

    def come(self, name: str) -> None:
        """What goes by this name is on the device again."""
        size = self._away.pop(name, 0)
        self.now[self.card_of(name)] += size
        self.moved += size
        self._mark()


def _stays_real(func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> bool:
    if tensors:
        return sum(t.numel() for t in tensors) <= INDICES and all(
            not t.is_floating_point() or t.numel() <= REAL for t in tensors
        )
    dtype = kwargs.get("dtype")
    if func._overloadpacket.__name__ in FACTORIES or (dtype is not None and not dtype.is_floating_point):
        return True
    shape = args[0] if args and isinstance(args[0], list | tuple) else ()
    return torch.Size(shape).numel() <= REAL


def _without_masks(indices: Any) -> list[Any]:
    """Masks of the places that are meant as these places, which fake tensors can be indexed with."""
    found = []
    with unset_fake_temporarily():
        for index in indices:
            is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
            found.extend(index.nonzero(as_tuple=True) if is_mask and not isinstance(index, FakeTensor) else [index])
    return found


class _AsOnCuda(TorchFunctionMode):
    """RMSNorm in one kernel, which the CPU composes of several."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def fused(input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
            return aten._fused_rms_norm(input, list(normalized_shape), weight, eps)[0]

        return (fused if func in (F.rms_norm, torch.rms_norm) else func)(*args, **(kwargs or {}))


def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
    """`Module._apply` that replaces fake parameters; torch's swaps them, which weak references forbid."""
    for child in self.children():
        child._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                new = fn(parameter)
            if new is not parameter and (new.dtype != parameter.dtype or new.device != parameter.device):
                self._parameters[key] = nn.Parameter(new, parameter.requires_grad)
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


@contextmanager
def without_numbers(card_of: Callable[[str], int] = lambda name: 0) -> Iterator[Ledger]:
    """While entered, tensors are as described above; the ledger counts them."""
    ledger, original = Ledger(card_of), nn.Module._apply
    nn.Module._apply = _apply
    try:
        with ledger.fake, ledger, _AsOnCuda():
            yield ledger
    finally:
        nn.Module._apply = original
