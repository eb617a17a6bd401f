"""The table of docs/memory.md: which memory plan each card would take, by the planner, without weights.

python benchmarks/cards.py
"""

from __future__ import annotations

from itertools import product

import torch
from accelerate import init_empty_weights
from full_size_models import CRITICS, GENERATORS
from full_size_plans import Part
from full_size_step import build_critic, build_generator, texts

from dual_process.distillation import Question
from dual_process.distillation.memory import Expectation, Sizes, fitting

CARDS = (8, 12, 16, 24, 48)  # GiB
FREE = 0.95  # of a card, beside what the system's windows take
MODELS = (
    ("flux-schnell", "qwen2.5-vl-7b", 512),
    ("flux-schnell", "qwen2.5-vl-7b", 1024),
    ("flux2-dev", "qwen2.5-vl-7b", 512),
    ("qwen-image", "qwen2.5-vl-7b", 512),
    ("z-image", "qwen3-vl-4b", 512),
    ("flux2-klein", "qwen3-vl-4b", 512),
)
BITS = (None, "8bit", "4bit")
NAMES = {None: "bf16", "8bit": "8 bits", "4bit": "4 bits"}


def main() -> None:
    print(
        "| models, picture | card | exact: plan | peak | moved | s at 25 GB/s | in few bits: plan | peak | moved | s |"
    )
    print("|---" * 10 + "|")
    for generator, critic, size in MODELS:
        found = all_sizes(generator, critic, size)
        for card in CARDS:
            free = int(card * FREE * 2**30)
            exact = fitting(found[None, None], free)[:1]
            packed = [(bits, e) for bits, sizes in found.items() if any(bits) for e in fitting(sizes, free)[:1]]
            packed.sort(key=lambda pair: pair[1].seconds())
            faster = packed[:1] if not exact or packed[0][1].seconds() < 0.9 * exact[0].seconds() else []
            cells = *plan(exact[0] if exact else None), *plan(*reversed(faster[0]) if faster else (None,))
            print(f"| {generator}, {critic}, {size}² | {card} GB | {' | '.join(cells)} |")


def all_sizes(generator: str, critic: str, size: int) -> dict[tuple[str | None, str | None], Sizes]:
    """Of a step with one question, by the bits of generator and critic."""
    parts = CRITICS[critic].parts()
    with init_empty_weights(include_buffers=False):
        teacher = build_generator(GENERATORS[generator], size, Part(), torch.bfloat16)
        judge = build_critic(CRITICS[critic], Part(), torch.bfloat16, parts)
    asked = [Question(text) for text in texts(1)]
    found = {}
    for ours, theirs in product(BITS, BITS):
        network, decoder, lora = teacher.sizes(1, rank=16, bits=ours)
        found[ours, theirs] = Sizes(network, decoder, [judge.size(size, size, asked, bits=theirs)], lora)
    return found


def plan(found: Expectation | None, bits: tuple[str | None, str | None] = (None, None)) -> tuple[str, ...]:
    if found is None:
        return "–", "", "", ""
    weights = f"{NAMES[bits[0]]} and {NAMES[bits[1]]}, " if any(bits) else ""
    figures = f"{found.peak / 2**30:.1f}", f"{found.moved / 1e9:.0f}", f"{found.seconds():.1f}"
    return f"{weights}{found.plan.name}", *figures


if __name__ == "__main__":
    main()
