"""A training step at full size on this machine's GPU: seconds, memory and transfers, against what was expected.

    python benchmarks/gpu_step.py                       # Flux schnell and Qwen2.5-VL-7B, 512², the plans of GROUPS
    python benchmarks/gpu_step.py --plan resident --steps 100 --profile
    python benchmarks/gpu_step.py --tiny                # small models, on the CPU too: whether it runs

Weights are random, in the real configurations; nothing is downloaded. Plans whose weights are alike are measured in
turn on the same models, by the engine's own `Run` and `arrange`. Seconds are of whole steps by the clock, after
warm-up; parts of a step by CUDA's events. The peak is what tensors take, without CUDA's own context.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import init_empty_weights
from full_size_models import CRITICS, GENERATORS, TINY_CRITIC, TINY_GENERATOR, CriticModels, GeneratorModels
from full_size_plans import PLANS, Part, Plan
from full_size_step import OFFLOAD, build_critic, build_generator, frozen, recipe, texts
from ledger import GiB
from rich.console import Console
from step import OPTIMISER, PARTS, REST, Clock
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dual_process.core.quantization import quantize
from dual_process.core.residency import Visit, weights_of
from dual_process.core.streaming import Stream
from dual_process.distillation import Question
from dual_process.distillation.memory import CONTEXT, OVERHEAD, Expectation, MemoryPlan, Place, Sizes, expect
from dual_process.distillation.run import Run
from dual_process.generators.diffusers.compiling import compile_blocks

GeneratorName = Enum("GeneratorName", {name: name for name in GENERATORS})
CriticName = Enum("CriticName", {name: name for name in CRITICS})
PlanName = Enum("PlanName", {name: name for name, plan in PLANS.items() if plan.cards == 1})
DEFAULT = (
    "resident",
    "checkpointed",
    "turns, checkpointed",
    "streamed",
    "8 and 4 bits, checkpointed",
    "fp8 and 4 bits, checkpointed",
    "4 bits, critic streamed",
)
DENSE = {"H100": 989.0, "H200": 989.0}  # TFLOP/s of bf16 without sparsity, by what is in a card's name
LEAST = 3  # steps that are timed anyhow
WARM = 3
TINY_SIZE = 64
say = Console(stderr=True).print


@dataclass(frozen=True)
class Case:
    """What all rows have in common."""

    generator: GeneratorModels
    critic: CriticModels
    names: tuple[str, str]
    device: torch.device
    size: int
    questions: int
    batch: int
    steps: int
    patience: float = 20.0
    compiled: bool = False
    profiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of weights; processors compute slowly in bf16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


@dataclass
class Models:
    """Generator and critic of one kind of weights, and what the first plan found of them."""

    generator: Any
    critic: Any
    gradients: dict[str, Tensor] = field(default_factory=dict)  # of the first step
    computing: float | None = None  # seconds of a checkpointed step without transfers


# Models


def build(case: Case, plan: Plan) -> Models:
    """Random models on the device; `arrange` moves them from there."""
    parts = case.critic.parts()
    network, vae = (filled(make, case) for make in (case.generator.network, case.generator.vae))
    generator = replace(case.generator, network=lambda: network, vae=lambda: vae)
    teacher = build_generator(generator, case.size, Part(), case.dtype)
    pack(network, plan.generator, case.device)
    if case.compiled:
        compile_blocks(network)
    model = filled(lambda: case.critic.model(parts[1]), case)
    critic = replace(case.critic, model=lambda _: model)
    judge = build_critic(critic, Part(), case.dtype, parts)
    pack(model, plan.critic, case.device)
    return Models(teacher, judge)


def filled(make: Callable[[], Any], case: Case) -> Any:
    """A model whose weights are made where they stay, by each layer's own rule."""
    with init_empty_weights(include_buffers=False):
        model = frozen(make(), case.dtype)
    torch.manual_seed(0)
    model.apply(lambda module: _fill(module, case.device))
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.requires_grad_(False)


def pack(model: Any, part: Part, device: torch.device) -> None:
    if part.weights != "bf16":
        keep = (*(getattr(model, "_keep_in_fp32_modules", None) or ()), "lm_head")
        quantize(model, part.weights, device, device, keep)


@torch.no_grad()
def _fill(module: Any, device: torch.device) -> None:
    for name, weight in module._parameters.items():
        if weight is not None:
            new = torch.ones if weight.ndim == 1 and name == "weight" else torch.zeros
            module._parameters[name] = nn.Parameter(new(weight.shape, dtype=weight.dtype, device=device), False)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else buffer.to(device)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def arrange(models: Models, plan: Plan) -> None:
    models.generator.arrange(OFFLOAD[plan.generator.place], plan.generator.checkpoints)
    models.critic.arrange(OFFLOAD[plan.critic.place], plan.critic.checkpoints)


# One row


class CudaClock(Clock):
    """Seconds of a step's parts on the GPU, which works later than Python does; without one, by the clock."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def begin(self, part: str) -> None:
        if self._cuda:
            mark: Any = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._marks.append((part, mark))
        self.part = part

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap."""
        self.begin(REST)
        if self._cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for (part, since), (_, until) in zip(self._marks, self._marks[1:], strict=False):
            seconds[part] += since.elapsed_time(until) / 1000 if self._cuda else until - since
        self._marks = self._marks[-1:]
        return seconds


def measured(case: Case, models: Models, name: str) -> dict[str, Any]:
    """All figures of one plan."""
    plan = PLANS[name]
    arrange(models, plan)
    clock = CudaClock(case.device)
    teacher, judge = models.generator, models.critic
    with ExitStack() as stack:
        stack.enter_context(clock.watching(teacher.network, "generator forward", "generator backward"))
        stack.enter_context(clock.watching(teacher.vae.decoder, "decode", "decoder backward"))
        stack.enter_context(clock.watching(judge.model, "critic forward", "critic backward"))
        stack.enter_context(clock.watching_optimisers())
        apart = distance(models, first_gradients(case, models, plan)) if not case.compiled else None
        if name == "resident" and not case.compiled:  # how far two equal runs are apart
            apart = distance(models, first_gradients(case, models, plan))
        run = stack.enter_context(started(case, models, plan))
        for _ in range(WARM):
            run.step()
        clear(case.device)
        clock.lap()
        laps, seconds = [], []
        while len(seconds) < LEAST or (len(seconds) < case.steps and sum(seconds) < case.patience):
            since = time.perf_counter()
            run.step()
            laps.append(clock.lap())  # waits for the device
            seconds.append(time.perf_counter() - since)
        peaks = peaks_of(case.device)
        busy = kernels(case, run) if case.profiled and case.device.type == "cuda" else {}
        losses = [report.loss for report in run.history]
    expected = expectation(case, models, plan)
    mean = statistics.mean(seconds)
    computed = plan.generator.checkpoints and plan.critic.checkpoints and expected.moved == 0
    models.computing = mean if computed else models.computing
    return {
        "seconds": mean,
        "seconds_median": statistics.median(seconds),
        "steps": len(seconds),
        "hundred_steps": 100 * mean,
        "parts": {part: statistics.median(lap[part] for lap in laps) for part in PARTS},
        **peaks,
        "expected_gib": counted(case, name) or (expected.peak - CONTEXT) / (1 + OVERHEAD) / GiB,
        "planned_gib": expected.peak / GiB,
        "tflop": expected.flops / 1e12,
        "of_dense_peak": of_peak(expected.flops / mean),
        "gradient_apart": apart,
        "losses": [losses[0], losses[-1]],
        **transfers(case, models, plan, expected, mean),
        **busy,
    }


def started(case: Case, models: Models, plan: Plan) -> Run:
    steps = WARM + max(case.steps, LEAST) + 1
    wanted = replace(recipe(case.questions), train_steps=steps, batch_size=case.batch)
    return Run(models.generator, models.critic, wanted, take_turns=plan.turns)


def first_gradients(case: Case, models: Models, plan: Plan) -> dict[str, Tensor]:
    """The LoRA's, after one step, on the CPU."""
    with started(case, models, plan) as run:
        run.step()
        found = models.generator.lora_parameters()
        return {name: p.grad.float().cpu() for name, p in found.items() if p.grad is not None}


def distance(models: Models, gradients: dict[str, Tensor]) -> float:
    """Of all gradients, relative to the first plan's."""
    models.gradients = models.gradients or gradients
    pairs = [(wanted, gradients[name]) for name, wanted in models.gradients.items()]
    square = sum(float((ours - wanted).double().square().sum()) for wanted, ours in pairs)
    return (square / sum(float(wanted.double().square().sum()) for wanted, _ in pairs)) ** 0.5


def expectation(case: Case, models: Models, plan: Plan) -> Expectation:
    """What the plan says before a run."""
    models.generator.remove_lora()  # whose layers would count twice
    network, decoder, lora = models.generator.sizes(case.batch, rank=16)
    judge = models.critic.size(case.size, case.size, [Question(text) for text in texts(case.questions)], case.batch)
    generator, critic = (Place(OFFLOAD[part.place], part.checkpoints) for part in (plan.generator, plan.critic))
    return expect(MemoryPlan("", generator, critic, plan.turns), Sizes(network, decoder, [judge], lora))


def counted(case: Case, plan: str) -> float | None:
    """The peak that full_size.py has counted tensor by tensor, where it has."""
    rows = json.loads((Path(__file__).parent / "full_size.json").read_text())
    asked = {**dict(zip(("generator", "critic"), case.names, strict=True)), "size": case.size, "plan": plan}
    asked["questions"] = case.questions
    found = [row["peak_gib"] for row in rows if all(row[name] == value for name, value in asked.items())]
    return found[0] if found and case.batch == 1 else None


def transfers(case: Case, models: Models, plan: Plan, expected: Expectation, seconds: float) -> dict[str, Any]:
    """How much of the time that moving weights takes by itself is hidden behind arithmetic."""
    if not expected.moved or case.device.type != "cuda":
        return {}
    streamed = [
        model
        for model, part in ((models.generator.network, plan.generator), (models.critic.model, plan.critic))
        if part.place == "streamed"
    ]
    found: dict[str, Any] = {"moved_gib": expected.moved / GiB}
    if streamed:
        size, taken = map(sum, zip(*(alone(model, case.device) for model in streamed), strict=True))
        found["link_gb"] = size / taken / 1e9
        moving = found["moving_seconds"] = expected.moved / (size / taken)
        if (computing := models.computing) is not None:
            both = computing + moving - seconds
            found |= {"computing_seconds": computing, "hidden": both / moving}
            found["of_hideable"] = both / min(computing, moving)
    return found


def alone(model: nn.Module, device: torch.device) -> tuple[float, float]:
    """Bytes of a model's blocks, and the seconds of their way to the device while nothing else is done."""
    stream = Stream(model, device)
    with stream.running():
        torch.cuda.synchronize()
        since = time.perf_counter()
        for block in stream.blocks:
            visit = Visit.kind(weights_of(block), device)
            visit.fetch()
            visit.leave()
        torch.cuda.synchronize()
        taken = time.perf_counter() - since
    return sum(t.nbytes for block in stream.blocks for t in weights_of(block)), taken


def kernels(case: Case, run: Run) -> dict[str, Any]:
    """The share of a step in which the GPU works, and what works longest."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        torch.cuda.synchronize()
        since = time.perf_counter()
        run.step()
        torch.cuda.synchronize()
        taken = time.perf_counter() - since
    spans: list[tuple[float, float]] = []
    by_name: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.append((event.time_range.start, event.time_range.end))
            by_name[event.name].append(event.time_range.end - event.time_range.start)
    busy, until = 0.0, 0.0
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:30]
    return {
        "busy_seconds": busy / 1e6,
        "profiled_seconds": taken,
        "kernels": [{"name": n[:150], "ms": sum(times) / 1000, "calls": len(times)} for n, times in longest],
        "launches": len(spans),
    }


# The device


def clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peaks_of(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / GiB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GiB,
    }


def of_peak(rate: float) -> float | None:
    """Share of the card's dense bf16 rate, where it is known."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate / 1e12 / peak for name, peak in DENSE.items() if name in card), None)


def machine(device: torch.device) -> dict[str, Any]:
    """The card, versions, and the rate of a large product of random numbers in bf16."""
    import diffusers
    import transformers

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=device) for _ in range(2))
        for _ in range(3):
            a @ b
        torch.cuda.synchronize()
        since = time.perf_counter()
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        found["card"] = torch.cuda.get_device_name()
        found["product_tflops"] = 20 * 2 * 8192**3 / (time.perf_counter() - since) / 1e12
    return found


# All rows


def main(
    plan: Annotated[list[PlanName] | None, typer.Option(help="May be repeated.")] = None,
    generator: Annotated[GeneratorName, typer.Option(help="What is trained.")] = GeneratorName["flux-schnell"],
    critic: Annotated[CriticName, typer.Option(help="What judges.")] = CriticName["qwen2.5-vl-7b"],
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 512,
    questions: Annotated[int, typer.Option(help="How many are asked.")] = 1,
    batch: Annotated[int, typer.Option(help="Pictures in a step.")] = 1,
    steps: Annotated[int, typer.Option(help="That are timed.")] = 10,
    patience: Annotated[float, typer.Option(help="Seconds of a row after which no more steps are timed.")] = 20.0,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the generator's blocks.")] = False,
    profiled: Annotated[bool, typer.Option("--profile", help="Also what the GPU does in a step, by kernels.")] = False,
    deterministic: Annotated[bool, typer.Option(help="By kernels that add in the same order each time.")] = False,
    tiny: Annotated[bool, typer.Option(help="Small models and pictures.")] = False,
    keep: Annotated[Path | None, typer.Option(help="A JSON file that is written after every row.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
) -> None:
    """A row for each plan; one that fails says why, and the others go on."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type != "cuda" and not tiny:
        raise typer.BadParameter("torch finds no GPU here; --tiny runs on the CPU.")
    models = (TINY_GENERATOR, TINY_CRITIC) if tiny else (GENERATORS[generator.value], CRITICS[critic.value])
    names = ("tiny", "tiny") if tiny else (generator.value, critic.value)
    side = TINY_SIZE if tiny else size
    case = Case(*models, names, device, side, questions, batch, steps, patience, compiled, profiled)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    about, rows = machine(device), []
    say(about)
    for row in rows_of(case, [one.value for one in plan or ()] or DEFAULT):
        rows.append(row)
        say({name: value for name, value in row.items() if name != "kernels"})
        if keep:
            keep.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    print(json.dumps({"machine": about, "rows": rows}, indent=2) if as_json else markdown(about, rows))
    raise typer.Exit(int(any("error" in row for row in rows)))


def rows_of(case: Case, plans: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Plans of the same weights after each other, on the same models."""
    by_weights: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in plans:
        by_weights[PLANS[name].generator.weights, PLANS[name].critic.weights].append(name)
    for weights, group in by_weights.items():
        models: Models | None = None
        for name in group:
            asked = {"generator": case.names[0], "critic": case.names[1], "size": case.size, "batch": case.batch}
            row = {**asked, "questions": case.questions, "plan": name, "weights": weights, "compiled": case.compiled}
            since = time.perf_counter()
            with told(row):
                models = models or build(case, PLANS[name])
                row |= measured(case, models, name)
            clear(case.device)
            yield row | {"row_seconds": time.perf_counter() - since}
        models = None
        clear(case.device)


@contextmanager
def told(row: dict[str, Any]) -> Iterator[None]:
    """An error becomes a part of the row."""
    try:
        yield
    except Exception as error:
        Console(stderr=True).print_exception(max_frames=12)
        row["error"] = f"{type(error).__name__}: {error}"


def markdown(about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    def number(row: dict[str, Any], name: str, form: str) -> str:
        return "" if row.get(name) is None else format(row[name], form)

    columns = {
        "seconds": ("s a step", ".3f"),
        "of_dense_peak": ("of dense peak", ".0%"),
        "peak_gib": ("peak GiB", ".2f"),
        "expected_gib": ("expected", ".2f"),
        "reserved_gib": ("reserved", ".2f"),
        "planned_gib": ("planned", ".2f"),
        "moved_gib": ("GiB moved", ".1f"),
        "link_gb": ("GB/s", ".1f"),
        "moving_seconds": ("s of moving alone", ".2f"),
        "computing_seconds": ("s of computing alone", ".2f"),
        "hidden": ("hidden", ".0%"),
        "of_hideable": ("of what can be", ".0%"),
        "gradient_apart": ("gradient", ".1e"),
    }
    titles = " | ".join(title for title, _ in columns.values())
    lines = [str(about), "", f"| plan | size | pictures | questions | {titles} |", "|---" * (len(columns) + 4) + "|"]
    for row in rows:
        first = f"| {row['plan']} | {row['size']} | {row['batch']} | {row['questions']} |"
        figures = " | ".join(number(row, name, form) for name, (_, form) in columns.items())
        lines.append(f"{first} {row.get('error') or figures} |")
    parts = [part for part in PARTS if part != OPTIMISER or any("parts" in row for row in rows)]
    lines += ["", f"| seconds of | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for row in rows:
        if "parts" in row:
            lines.append(f"| {row['plan']} | {' | '.join(format(row['parts'][part], '.3f') for part in parts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(typer.run(main))
