"""What the process needs of the models behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..core.protocols import ModelInfo
from .states import Fact, Plan, Stroke


@dataclass(frozen=True)
class Canvas:
    """A picture on its way.

    Attributes:
        latent: the painter's own; it is carried on, since a picture that goes through the VAE again and again fades.
        picture: [1, 3, H, W] in [0, 1], on the CPU.
    """

    latent: Any
    picture: Tensor


class Painter(Protocol):
    """Makes and changes pictures."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def keeps_outside(self) -> bool:
        """Whether a stroke with a region leaves the latent outside it bit-equal."""
        ...

    def draft(self, prompt: str, seed: int) -> Canvas:
        """A picture of a prompt, by one pass."""
        ...

    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        """The canvas with a stroke's instruction carried out, by one pass."""
        ...


class Thinker(Protocol):
    """Plans, looks, and says what is wrong."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def control(self) -> Fact | None:
        """A fact that is true of a plain grey canvas, by which a critic is known that says No to everything."""
        ...

    def plan(self, prompt: str) -> Plan:
        """Raises ProcessError where no plan can be made of what was thought."""
        ...

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        """How an instruction has to read so that it fits the prompt and the scene so far; itself where it fits."""
        ...

    def read(self, picture: Tensor, facts: Sequence[Fact]) -> list[float]:
        """P(wanted answer) of each fact, as a share of P(Yes) + P(No), about a picture [1, 3, H, W]."""
        ...

    def reflect(self, picture: Tensor, failing: Sequence[Fact], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        """What is wrong with a picture in words, and the instruction that would mend it.

        Args:
            failing: the facts that the picture violates or has lost.
            failed: instructions that were tried and did not help.
        """
        ...
