"""One diffusers model at one picture size: clean estimates, for the roll-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...core.residency import Turns
from ..architectures.architecture import Architecture, Conditions, Parts, Size
from ..noise import draw_noise

NETWORK, DECODER, TINY_DECODER = "network", "decoder", "tiny decoder"


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as the network sees them, one row each, and the empty prompt of classifier-free guidance."""

    texts: tuple[str, ...]
    conditions: tuple[Conditions, ...]
    empty: Conditions | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> EncodedPrompts:
        conditions = tuple(_moved(row, device, dtype) for row in self.conditions)
        return EncodedPrompts(self.texts, conditions, self.empty and _moved(self.empty, device, dtype))


def _moved(row: Conditions, device: torch.device, dtype: torch.dtype) -> Conditions:
    return {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in row.items()}


def decoding_parts(vae: nn.Module) -> list[nn.Module]:
    """What of a VAE takes part in decoding."""
    return [part for name, part in vae.named_children() if name not in ("encoder", "quant_conv")]


def gathered(rows: Sequence[Conditions]) -> Conditions:
    """Conditions of a batch; sequences of different lengths are filled up with zeros, their masks with them."""
    return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    longest = max(row.shape[1] for row in rows)
    return torch.cat([F.pad(row, (*[0] * 2 * (row.ndim - 2), 0, longest - row.shape[1])) for row in rows])


class PipelineDenoiser:
    """A `Denoiser` of a pipeline's parts.

    Args:
        architecture, parts, prompts: of the generator; `prompts.empty` where guidance needs it.
        size: of one latent.
        steps: of the sampler.
        guidance: its strength; None for a model that has none.
        turns: of NETWORK, DECODER and TINY_DECODER.
        tiny_decoder: decodes instead of the VAE.
        recompute_picture: decode again in the backward pass, until when nothing of the decoder is kept.
    """

    def __init__(
        self,
        architecture: Architecture,
        parts: Parts,
        prompts: EncodedPrompts,
        size: Size,
        steps: int,
        guidance: float | None,
        device: torch.device,
        turns: Turns,
        tiny_decoder: nn.Module | None = None,
        recompute_picture: bool = False,
    ) -> None:
        self._architecture, self._parts, self._prompts, self._size = architecture, parts, prompts, size
        self._guidance, self._device, self._turns = guidance, device, turns
        self._recompute_picture = recompute_picture
        self._decoder, self._vae = (DECODER, parts.vae) if tiny_decoder is None else (TINY_DECODER, tiny_decoder)
        self.sigmas = architecture.sigmas(parts.scheduler, steps, size).to(device)

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        noise = draw_noise(seeds, self._size.channels, self._size.height, self._size.width)
        return self._architecture.pack(noise).to(self._device)

    def start(self, seeds: Sequence[int]) -> Tensor:
        return self._architecture.path.start(self._parts.scheduler, self._noise(seeds), self.sigmas[0])

    def __call__(self, x: Tensor, sigma: Tensor, prompt_indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        self._turns.come(NETWORK)
        architecture, kind = self._architecture, self._kind
        conditions = gathered([self._prompts.conditions[index] for index in prompt_indices])
        if kind == "embedded":
            conditions["guidance"] = torch.full((len(x),), self._guidance or 0.0, device=self._device)
        slope = self._slope(x, sigma, conditions)
        if kind == "cfg" and self._prompts.empty is not None:
            empty = gathered([self._prompts.empty] * len(x))
            slope = architecture.combine(slope, self._slope(x, sigma, empty), self._guidance or 0.0)
        return x - _like(sigma, x) * slope, slope

    @property
    def _kind(self) -> str:
        guidance = self._architecture.guidance(self._parts.config)
        if guidance.kind == "cfg" and (self._guidance is None or self._guidance <= guidance.off):
            return "none"
        return guidance.kind

    def _slope(self, x: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        return self._architecture.predict(self._parts, x, sigma, dict(conditions), self._size).float()

    def renoise(self, clean: Tensor, seeds: Sequence[int], times: Sequence[float]) -> tuple[Tensor, Tensor]:
        path = self._architecture.path
        time = torch.tensor(times, dtype=torch.float32, device=self._device)
        sigma = path.sigma_at(self._parts.scheduler, time)
        return path.mix(clean, self._noise(seeds), _like(sigma, clean)), sigma

    def finish(self, x: Tensor) -> Tensor:
        return self._architecture.path.finish(x, self.sigmas[-1])

    def decode(self, clean: Tensor) -> Tensor:
        self._turns.come(self._decoder)
        clean = self._turns.before_backward(NETWORK, clean)
        again = self._recompute_picture and clean.requires_grad
        image = checkpoint(self._picture, clean, use_reentrant=False) if again else self._picture(clean)
        return self._turns.before_backward(self._decoder, image)  # type: ignore[arg-type]

    def _picture(self, clean: Tensor) -> Tensor:
        latents = self._architecture.unpack(clean, self._size.height, self._size.width)
        return (self._architecture.decode(self._vae, latents).float() + 1) / 2  # [-1, 1] -> [0, 1]


def _like(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (x.ndim - 1))
