"""Runs a control of the demo world from start to report: evaluate, distil, evaluate again, judge, write it all down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..distillation import Critic, DistillationResult, distill
from ..distillation.anchors import OnAnchor
from ..distillation.loop import OnStep
from ..distillation.report import save_before_after, save_progress, write_json
from ..evaluation.control import Control, Pairs, Verdict, evaluate, judge, make_pairs, sample_pairs
from ..generators import DiffusersGenerator
from ..generators.noise import draw_noise

PICTURES = 8


@dataclass(frozen=True)
class ControlRun:
    """What a run of a control gave; `report` is the content of `report.json`."""

    result: DistillationResult
    verdict: Verdict
    report: dict[str, Any]


def run_control(
    control: Control,
    generator: DiffusersGenerator,
    critic: Critic,
    output: Path,
    pairs: int = 64,
    on_step: OnStep | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume_from: Path | None = None,
    on_anchor: OnAnchor | None = None,
) -> ControlRun:
    """Distils a control and writes what README.md lists to `output`: LoRA, checkpoint, two pictures and report.

    Args:
        control: what to teach; the generator holds `control.prompts`.
        pairs: how many held-out (prompt, noise) pairs the measures are taken on.
    """
    output.mkdir(parents=True, exist_ok=True)
    held_out = make_pairs(control, pairs, lambda seeds: draw_noise(seeds, *control.noise_shape))
    started = time.perf_counter()
    base = sample_pairs(generator, held_out, lora_scale=0.0)
    before = evaluate(control, critic, base, base, held_out, trained=False)
    checkpoint = output / "checkpoint.safetensors"
    result = distill(
        generator, critic, control.recipe, on_step, should_stop, resume_from, checkpoint, on_anchor=on_anchor
    )
    lora = result.save(output / "lora.safetensors")
    result.save_checkpoint(checkpoint)
    trained = sample_pairs(generator, held_out, lora_scale=1.0)
    after = evaluate(control, critic, trained, base, held_out, trained=True)
    verdict = judge(control, before, after)
    findings = {
        "outcome": verdict.outcome,
        "verdict": verdict.text,
        "lost": list(verdict.lost),
        "before": before,
        "after": after,
    }
    result.save(lora, verdict=findings)

    save_progress(output / "progress.png", result.history, control.recipe.questions)
    _save_pictures(output / "before_after.png", control, base, trained, held_out)
    report = {
        "control": control.name,
        "seed": control.recipe.seed,
        "steps": result.steps,
        "stop_reason": result.stop_reason,
        "seconds": time.perf_counter() - started,
        "seconds_per_step": sum(r.seconds for r in result.history) / max(1, result.steps),
        "lora": str(lora),
        "pairs": len(held_out),
        **findings,
        "recipe": control.recipe.to_dict(),
    }
    write_json(output / "report.json", report)
    return ControlRun(result, verdict, report)


def _save_pictures(path: Path, control: Control, base: Tensor, trained: Tensor, pairs: Pairs) -> None:
    """Eight held-out pairs with the visual prompt drawn on them (for one without, the bare pictures).

    Below them stand the true pictures that the control should lead to, where they are known.
    """
    stride = max(1, len(pairs) // PICTURES)
    chosen = list(range(0, len(pairs), stride))[:PICTURES]
    rows = [base, trained, *([] if control.truth is None else [control.truth(pairs).images])]
    overlay = control.recipe.questions[0].overlay
    before, after, *true = [images[chosen] if overlay is None else overlay.apply(images[chosen]) for images in rows]
    save_before_after(path, before, after, [pairs.prompts[i] for i in chosen], *true)
