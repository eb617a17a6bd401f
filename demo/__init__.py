"""The embedded default: a procedural world and tiny models with real trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..critics import TransformersCritic
    from ..generators import DiffusersGenerator

WEIGHTS = Path(__file__).parent / "weights"


def load(
    prompts: Sequence[str] | None = None, folder: str | Path = WEIGHTS, critic_size: int | None = None
) -> tuple[DiffusersGenerator, TransformersCritic]:
    """The demo generator (112 × 112, one sampler step) and the demo critic, float32 on the CPU.

    Args:
        prompts: what the generator holds; the horizon control's training and held-out prompts by default.
        folder: where `pipeline/` and `critic/` lie; the weights that ship with the pack by default.
        critic_size: `max_size` of the critic.
    """
    from ..critics import load_critic
    from ..generators import load_generator
    from .controls import horizon_control
    from .world import IMAGE_SIZE

    generator = load_generator(
        Path(folder) / "pipeline",
        prompts=list(prompts) if prompts is not None else horizon_control().prompts,
        device="cpu",
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        num_inference_steps=1,
    )
    return generator, load_critic(Path(folder) / "critic", device="cpu", max_size=critic_size)
