"""What the process is measured against at equal cost, with the same painter and thinker.

A single pass and prompt expansion are `painter.draft` of the prompt and of the plan's description; strokes without
inspection, or without rollback, are `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .inspecting import Ledger, gain
from .protocols import Canvas, Painter, Thinker
from .states import Plan


def best_of_n(plan: Plan, painter: Painter, thinker: Thinker, passes: int, seed: int) -> Canvas:
    """The prompt painted `passes` times; the picture of which the thinker holds most of the plan's facts."""
    ledger = Ledger(plan)
    for stroke in plan.strokes:
        ledger.run(stroke.id)
    seeds = np.random.default_rng(seed).integers(2**63, size=passes).tolist()
    canvases = [painter.draft(plan.prompt, each) for each in seeds]
    return max(canvases, key=lambda canvas: gain(ledger.readings(thinker.read(canvas.picture, plan.facts))))


def optimise_latent(
    latent: Tensor, decode: Callable[[Tensor], Tensor], score: Callable[[Tensor], Tensor], steps: int, rate: float
) -> Tensor:
    """Moves a latent uphill by the critic's own gradient, which finds pictures that only the critic likes.

    Args:
        latent: of any shape.
        decode: latents to pictures in [0, 1], with gradient.
        score: pictures to the scalar that is to grow, mean log P of the facts.
        steps, rate: of Adam, the rate in units of the latent.

    Returns:
        The latent after the last step.
    """
    moved = latent.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (-score(decode(moved))).backward()
        optimizer.step()
    return moved.detach()
