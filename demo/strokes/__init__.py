"""The second demo world: drawings of houses, trees and balls, whose line weight, depth and layout can be taught, and
which can be changed stroke by stroke."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...critics import TransformersCritic
    from ...generators import DiffusersGenerator

WEIGHTS = Path(__file__).parent / "weights"
PRESET = "demo-strokes"  # the settings that suit its generator


def load(
    prompts: Sequence[str] | None = None, folder: str | Path = WEIGHTS, critic_size: int | None = None
) -> tuple[DiffusersGenerator, TransformersCritic]:
    """The second world's generator (128 × 128, one sampler step) and its critic, float32 on the CPU.

    Args:
        prompts: what the generator holds; the line weight control's training and held-out prompts by default.
        folder: where `pipeline/` and `critic/` lie; the weights that ship with the pack by default.
        critic_size: `max_size` of the critic.
    """
    from ...critics import load_critic
    from ...generators import load_generator
    from .controls import line_weight_control
    from .world import IMAGE_SIZE

    generator = load_generator(
        Path(folder) / "pipeline",
        prompts=list(prompts) if prompts is not None else line_weight_control().prompts,
        device="cpu",
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        num_inference_steps=1,
    )
    return generator, load_critic(Path(folder) / "critic", device="cpu", max_size=critic_size)
