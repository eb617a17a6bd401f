"""What a training step costs by part, for this tree and for an earlier one, side by side.

    python benchmarks/step.py            # a Markdown table; --json for all figures

A random Flux of 214 M weights, its VAE and a random Qwen2.5-VL of 267 M, in bfloat16 on one CPU core, 336 × 336, one
sampler step. Trees and numbers of questions take turns, times and memory each in a fresh process:

- seconds: CPU time of a part, the median over all steps. Where a part of a step begins and ends is marked by hooks on
  the models and on gradients, so that "rest" is what no model does: overlay, the picture's way to the critic, the loss.
- MiB: the most memory while a part works, beyond what was held before the step.
- outside: the share of a step's time outside the operators of the three models, by PyTorch's profiler. "rest" and the
  optimiser are in it, and Python within the models.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from critic_questions import make_questions, write_model
from peak_memory import MB, Peak, resident
from rich.console import Console
from rich.progress import track
from torch.autograd.variable import Variable
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile, record_function

HERE = Path(__file__).resolve()
BEFORE = "9a04e92"  # the last commit before steps were made faster and smaller
REST, OPTIMISER = "rest", "optimiser"
PARTS = (
    "generator forward",
    "decode",
    "critic forward",
    "critic backward",
    "decoder backward",
    "generator backward",
    OPTIMISER,
    REST,
)
MARK = "part: "
TEXT = 256  # tokens of a prompt
SIZE = 336  # pixels
CRITIC = {  # sizes of its parts, for the text and for the picture
    "text": {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 4},
    "vision": {"hidden_size": 768, "intermediate_size": 2048, "num_heads": 12, "out_hidden_size": 1024},
}
STEPS = 3  # that are timed in a process


class Clock:
    """CPU seconds of each part of a step. A part lasts until the next one begins."""

    def __init__(self) -> None:
        self.part = REST
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.process_time()

    def begin(self, part: str) -> None:
        now = time.process_time()
        self.seconds[self.part] += now - self._since
        self.part, self._since = part, now
        with record_function(MARK + part):  # for the profiler
            pass

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap."""
        self.begin(REST)
        seconds = {part: self.seconds[part] for part in PARTS}
        self.seconds.clear()
        return seconds

    @contextmanager
    def watching(self, model: Any, forward: str, backward: str) -> Iterator[None]:
        """While entered, the model's passes are parts of their own.

        The backward pass begins with the gradient of the model's output and ends with that of its inputs, or with the
        whole backward pass where no input has one.
        """

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for tensor in (*args, *kwargs.values()):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: self.begin(REST))
            self.begin(forward)

        def after(_: Any, args: Any, output: Any) -> None:
            self.begin(REST)
            first = output if isinstance(output, torch.Tensor) else output[0]
            if first.requires_grad:
                first.register_hook(begin_backward)

        def begin_backward(_: Any) -> None:
            self.begin(backward)
            Variable._execution_engine.queue_callback(lambda: self.begin(REST))  # when all gradients are there

        handles = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def watching_optimisers(self) -> Iterator[None]:
        """While entered, steps of optimisers are a part of their own."""
        handles = [
            register_optimizer_step_pre_hook(lambda *_: self.begin(OPTIMISER)),
            register_optimizer_step_post_hook(lambda *_: self.begin(REST)),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


# One tree


def measure(folder: Path, questions: int, memory: bool) -> dict[str, Any]:
    """Times, or memory, of the tree that `dual_process` is found in; the interface used here is an old one."""
    from dual_process import overlays
    from dual_process.critics import load_critic
    from dual_process.distillation import Question, Recipe
    from dual_process.distillation.run import Run

    torch.set_num_threads(1)
    generator, critic = build_generator(), load_critic(folder, device="cpu", dtype="bfloat16")
    asked = (Question(question.text, overlay=overlays.horizon(0.3)) for question in make_questions(questions))
    recipe = Recipe(questions=tuple(asked), prompts=("a prompt",), train_steps=STEPS + 3, num_inference_steps=1)
    clock = Clock()
    with ExitStack() as stack:
        stack.enter_context(clock.watching(generator.network, "generator forward", "generator backward"))
        stack.enter_context(clock.watching(generator.vae.decoder, "decode", "decoder backward"))
        stack.enter_context(clock.watching(critic.model, "critic forward", "critic backward"))
        stack.enter_context(clock.watching_optimisers())
        run = stack.enter_context(Run(generator, critic, recipe))
        run.step()  # kernels are chosen, questions encoded
        clock.lap()
        if memory:
            return {"mib": peaks_of(run, clock)}
        laps = []
        for _ in range(STEPS):
            run.step()
            laps.append(clock.lap())
        return {"seconds": laps, "outside": outside_share(run), "loss": [report.loss for report in run.history]}


def build_generator() -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    from dual_process.generators import DiffusersGenerator
    from dual_process.generators.architectures.flux import FLUX
    from dual_process.generators.diffusers.denoising import EncodedPrompts
    from dual_process.generators.settings import GeneratorSettings

    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        num_layers=3,
        num_single_layers=6,
        num_attention_heads=16,
        attention_head_dim=64,
        joint_attention_dim=1024,
        pooled_projection_dim=256,
        axes_dims_rope=(8, 28, 28),
        guidance_embeds=False,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 128, 128, 256),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for model in (network, vae):
        model.to(torch.bfloat16).eval().requires_grad_(False)
    conditions = {"sequence": torch.randn(1, TEXT, 1024), "pooled": torch.randn(1, 256)}
    prompts = EncodedPrompts(("a prompt",), (conditions,))
    settings = GeneratorSettings(height=SIZE, width=SIZE)
    return DiffusersGenerator(FLUX, network, vae, FlowMatchEulerDiscreteScheduler(), prompts, "flux", settings)


def peaks_of(run: Any, clock: Clock) -> dict[str, float]:
    """The most memory of each part of a step in MiB, beyond what is held before it."""
    gc.collect()
    before = resident()
    with Peak(lambda: clock.part) as peak:
        run.step()
    return {part: (peak.of.get(part, before) - before) / MB for part in PARTS}


def outside_share(run: Any) -> float:
    """The share of a step's time that no operator of a model takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function(MARK + REST):
            started = time.perf_counter()
        run.step()
        taken = time.perf_counter() - started
    part, until, inside = REST, 0.0, 0.0
    for event in sorted(profiler.events() or (), key=lambda event: event.time_range.start):
        if event.name.startswith(MARK):
            part = event.name.removeprefix(MARK)
        elif event.name.startswith("aten::") and event.time_range.start >= until:  # called by no other operator
            until = event.time_range.end
            inside += (until - event.time_range.start) * (part not in (REST, OPTIMISER))
    return 1 - inside / 1e6 / taken  # from microseconds


# Two trees


def main(
    before: Annotated[str, typer.Option(help="The commit that this tree is compared with.")] = BEFORE,
    questions: Annotated[list[int] | None, typer.Option(help="How many are asked; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Processes for each row.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
    models: Annotated[Path | None, typer.Option(hidden=True, help="Measures one tree; internal.")] = None,
    memory: Annotated[bool, typer.Option(hidden=True, help="Its memory rather than its times; internal.")] = False,
) -> None:
    """Two rows for each number of questions; about a minute a row and round on one core."""
    counts = questions or [1, 3]
    if models is not None:
        print(json.dumps(measure(models, counts[0], memory)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "critic").mkdir()
        write_model(folder / "critic", **CRITIC)
        trees = {f"before ({before})": earlier_tree(folder, before), "now": this_tree(folder)}
        found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        cases = [(count, tree) for _ in range(rounds) for count in counts for tree in trees]
        for count, tree in track(cases, console=Console(stderr=True)):
            found[count, tree].append(measured_apart(trees[tree], folder / "critic", count))
    rows = [{"questions": count, "tree": tree, **joined(runs)} for (count, tree), runs in found.items()]
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def earlier_tree(folder: Path, commit: str) -> Path:
    """A folder in which `dual_process` is the package as of a commit."""
    package = folder / "earlier" / "dual_process"
    package.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", HERE.parents[1], "archive", commit], check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", package], input=archive.stdout, check=True)
    return package.parent


def this_tree(folder: Path) -> Path:
    link = folder / "present" / "dual_process"
    link.parent.mkdir()
    link.symlink_to(HERE.parents[1])
    return link.parent


def measured_apart(tree: Path, folder: Path, questions: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE), "--models", str(folder), "--questions", str(questions)]
    # Large tensors get memory of their own, which is given back when they go, and so counts only while they are there.
    # It takes time of its own.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; read when a process starts
    return {**answer_of(command, tree, {}), **answer_of([*command, "--memory"], tree, frugal)}


def answer_of(command: list[str], tree: Path, environment: dict[str, str]) -> dict[str, Any]:
    whole = {**os.environ, "PYTHONPATH": str(tree), **environment}
    done = subprocess.run(command, env=whole, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several processes' figures: medians, and of memory the least, since nothing shrinks it by chance."""
    laps = [lap for run in runs for lap in run["seconds"]]
    return {
        "step_seconds": statistics.median(sum(lap.values()) for lap in laps),
        "seconds": {part: statistics.median(lap[part] for lap in laps) for part in PARTS},
        "mib": {part: min(run["mib"][part] for run in runs) for part in PARTS},
        "outside": statistics.median(run["outside"] for run in runs),
        "loss": runs[0]["loss"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [f"| questions | tree | | {' | '.join(PARTS)} | step | outside |", "|---" * (len(PARTS) + 5) + "|"]
    for row in rows:
        seconds = " | ".join(f"{row['seconds'][part]:.3f}" for part in PARTS)
        mib = " | ".join(f"{row['mib'][part]:.0f}" for part in PARTS)
        name = f"| {row['questions']} | {row['tree']} |"
        lines.append(f"{name} s | {seconds} | {row['step_seconds']:.2f} | {row['outside']:.1%} |")
        lines.append(f"{name} MiB | {mib} | {max(row['mib'].values()):.0f} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
