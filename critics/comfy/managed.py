# pyright: reportMissingImports=false
"""A critic whose weights ComfyUI's model management brings to the device and takes away, as it does with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...comfy_host.borrowed import take_away
from ...core.devices import choose_device
from ...core.errors import CriticError
from ...core.model_folder import weight_files
from ...core.picture import Picture
from ...core.protocols import AskedQuestion, ModelInfo
from ...core.sizes import ModelSize
from ...core.streaming import Offload, check_offload
from ..transformers_critic import TransformersCritic, load_critic

TOKENS = 2048  # of a prompt with its image, to estimate the memory that a gradient takes


class WholeModelPatcher(comfy.model_patcher.ModelPatcher):
    """Moves a model of transformers, which ComfyUI cannot run in part, and outside inference mode.

    Weights that are moved in inference mode, in which ComfyUI runs nodes, could never take part in a gradient again.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> Any:
        with torch.inference_mode(False):
            return super().partially_load(device_to, 1e32, force_patch_weights)  # bytes: all of it

    def partially_unload(self, *args: Any, **kwargs: Any) -> int:
        return 0  # bytes: then the whole model is taken away

    def unpatch_model(self, *args: Any, **kwargs: Any) -> None:
        with torch.inference_mode(False):
            super().unpatch_model(*args, **kwargs)


class ManagedCritic:
    """A `TransformersCritic` that asks ComfyUI for room whenever it works.

    Args:
        critic: its weights lie on ComfyUI's offload device.
        offload: False leaves it to ComfyUI to load the critic. With True the weights stay in main memory and come to
            the device only while the critic works, with "blocks" each block's only while that block works.

    Attributes:
        offload: as given; `arranged` sets it for a while.
        patcher: what ComfyUI loads, unless the critic offloads.
    """

    def __init__(self, critic: TransformersCritic, offload: Offload = False) -> None:
        check_offload(offload, CriticError)
        self._critic = critic
        self.offload: Offload = offload
        held = nn.Module()  # ComfyUI sets attributes on it that a model of transformers refuses
        held.add_module("critic", critic.model)
        self.patcher = WholeModelPatcher(held, critic.device, critic.model.device)

    @property
    def info(self) -> ModelInfo:
        """Name, class, dtype and weight hash."""
        return self._critic.info

    def size(
        self, height: int, width: int, questions: Sequence[AskedQuestion], samples: int = 1, bits: str | None = None
    ) -> ModelSize:
        """What judging takes on the device, see `TransformersCritic.size`."""
        return self._critic.size(height, width, questions, samples, bits)

    @contextmanager
    def resident(self) -> Iterator[None]:
        """While entered, the weights are on the device; the backward pass is made inside, too."""
        if self.offload:
            take_away([self.patcher], self._critic.device)
            self._critic.offload = self.offload
            with self._critic.resident():
                yield
            return
        if self.patcher not in comfy.model_management.loaded_models():
            comfy.model_management.load_models_gpu([self.patcher], self._working_memory())
        yield

    @contextmanager
    def arranged(self, offload: Offload | None = None, gradient_checkpointing: bool | None = None) -> Iterator[None]:
        """While entered, the critic works by these settings, see `load_critic`; None leaves one as it is.

        Raises:
            CriticError: `offload` is none of its values.
        """
        before = self.offload
        if offload is not None:
            check_offload(offload, CriticError)
            self.offload = offload
        if self.offload:
            take_away([self.patcher], self._critic.device)
        try:
            with self._critic.arranged(self.offload or None, gradient_checkpointing):
                yield
        finally:
            self.offload = before

    def _working_memory(self) -> int:
        """Bytes of activations of a gradient, about 34 · hidden size a token and layer in half precision.

        Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", equation 2.
        """
        text = self._critic.model.config.get_text_config()
        return 17 * self._critic.model.dtype.itemsize * TOKENS * text.hidden_size * text.num_hidden_layers

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question), see `TransformersCritic.log_likelihood`."""
        with self.resident():
            return self._critic.log_likelihood(images, questions)

    def answer(
        self, images: Tensor, text: str, max_new_tokens: int = 16, references: Sequence[Picture] = ()
    ) -> list[str]:
        """The greedy reply, see `TransformersCritic.answer`."""
        with self.resident():
            return self._critic.answer(images, text, max_new_tokens, references)


def load_managed_critic(
    folder: Path,
    device: str | None,
    dtype: str | None,
    quantization: str | None,
    gradient_checkpointing: bool,
    max_size: int | None = None,
) -> ManagedCritic:
    """Loads a critic into main memory, to be moved by ComfyUI; the weights of a quantised one are packed on the device.

    Args:
        folder: as transformers writes it.
        device: None is ComfyUI's own device.
        dtype: None is float32 on the CPU, else bfloat16.
        quantization: None, "8bit" or "4bit".
        gradient_checkpointing: whether the backward pass computes each layer again.
        max_size: see `load_critic`.

    Raises:
        CriticError: the folder or the settings cannot make a critic.
    """
    place = comfy.model_management.get_torch_device() if device is None else choose_device(device, CriticError)
    options: dict[str, Any] = {"gradient_checkpointing": gradient_checkpointing, "max_size": max_size}
    if quantization is not None:
        size = sum(file.stat().st_size for file in weight_files(folder))
        comfy.model_management.free_memory(size, place)
        critic = load_critic(folder, place, dtype, quantization, **options)
        critic.arrange(True, gradient_checkpointing)
        return ManagedCritic(critic)
    return ManagedCritic(load_critic(folder, place, dtype, offload=True, **options))
