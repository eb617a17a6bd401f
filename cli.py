"""The command line: `dual-process demo`, `train`, `ask`, `convert`, `inspect`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from . import cli_memory
from .cli_errors import clear_errors, console
from .core.errors import DualProcessError, LoraFileError
from .distillation.result import DistillationError, DistillationResult, Preview, StepReport

if TYPE_CHECKING:
    from .distillation.memory import MemoryPlan
    from .evaluation import Verdict

app = typer.Typer(
    help="Teach an image generator new controls by asking a vision-language model about its pictures.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(cli_memory.plan)


class ControlName(str, Enum):
    """The controls that the demo can teach."""

    horizon = "horizon"
    palette = "palette"
    night = "night"


class LoraFormat(str, Enum):
    """Key names of a LoRA file."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


class Quantization(str, Enum):
    """Bits of a critic's weights."""

    eight = "8bit"
    four = "4bit"


class GeneratorQuantization(str, Enum):
    """How a generator's weights are kept."""

    eight = "8bit"
    four = "4bit"
    fp8 = "fp8"


LORA = "lora.safetensors"
CHECKPOINT = "checkpoint.safetensors"
RESUME_HELP = "Go on from the checkpoint in the output folder."
OVERWRITE_HELP = "Begin anew where the output folder holds an unfinished run."
QUANTIZATION_HELP = "Load the critic in 8 or 4 bits (needs bitsandbytes)."


class StopOnInterrupt:
    """While entered, Ctrl-C asks the loop to stop; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __call__(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> StopOnInterrupt:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, *_: object) -> None:
        self._asked.set()
        signal.signal(signal.SIGINT, self._before)
        console.print("Stopping after this step …")


class Bars:
    """What the terminal shows of a run: the pool of anchors, the steps with loss and P(answer), the last pictures."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._anchors = progress.add_task("anchors", total=None, visible=False, note="")
        self._steps = progress.add_task("distil", total=steps, note="")
        self._pictures = progress.add_task("pictures", total=None, visible=False, note="")

    def on_anchor(self, done: int, total: int) -> None:
        self._progress.update(self._anchors, completed=done, total=total, visible=True)

    def on_step(self, report: StepReport, preview: Preview) -> None:
        known = [p for p in report.p_answer if p == p]
        mean = sum(known) / len(known) if known else float("nan")
        note = f"loss {report.loss:.3f}  P(answer) {mean:.2f}"
        self._progress.update(self._steps, completed=report.step, note=note)

    def on_picture(self, done: int, total: int) -> None:
        self._progress.update(self._pictures, completed=done, total=total, visible=True)


@contextmanager
def progress_bars(steps: int) -> Iterator[Bars]:
    columns = [
        TextColumn("[bold]{task.description}[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress:
        yield Bars(progress, steps)


@app.command()
def demo(
    control: Annotated[ControlName, typer.Option(help="What to teach.")] = ControlName.horizon,
    line: Annotated[float, typer.Option(min=0, max=1, help="Height of the horizon line, fraction from the top.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the results; output/demo_CONTROL by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the control's own by default.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The control's own by default.")] = None,
    regularizers: Annotated[
        bool, typer.Option(help="Anchors, keep questions and penalties: what keeps pictures.")
    ] = True,
    pairs: Annotated[int, typer.Option(min=1, help="Held-out (prompt, noise) pairs of the evaluation.")] = 64,
    resume: Annotated[bool, typer.Option(help=RESUME_HELP)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json to standard output.")] = False,
) -> None:
    """Teaches the embedded demo models a control and measures whether it worked."""
    with clear_errors():
        from . import demo as world
        from .demo.controls import CONTROLS
        from .demo.runner import run_control

        changes: dict[str, Any] = {}
        if steps is not None:
            changes["train_steps"] = steps
        if learning_rate is not None:
            changes["learning_rate"] = learning_rate
        if control == ControlName.horizon:
            changes["line"] = line
        if not regularizers:
            changes |= {"penalties": {}, "questions": CONTROLS[control.value](**changes).asked}
        chosen = CONTROLS[control.value](seed=seed, **changes)
        folder = _make_folder(output or Path("output") / f"demo_{control.value}")
        checkpoint = _checkpoint_to_resume(folder, resume, overwrite)
        generator, critic = world.load(chosen.prompts)
        with StopOnInterrupt() as should_stop, progress_bars(chosen.recipe.train_steps) as bars:
            try:
                run = run_control(
                    chosen, generator, critic, folder, pairs, bars.on_step, should_stop, checkpoint, bars.on_anchor
                )
            except DistillationError as error:
                _save_partial(error.result, folder)
                raise
        if run.result.stop_reason == "interrupted":
            _say_how_to_resume(run.result, folder)
        _print_measures(run.report)
        _print_verdict(run.verdict)
        console.print(f"Written to {folder}: lora.safetensors, before_after.png, progress.png, report.json")
        if as_json:
            print((folder / "report.json").read_text())


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML or JSON file.")],
    generator: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline, such as Flux or SDXL.")],
    critic: Annotated[Path, typer.Option(help="Folder of a transformers vision-language model.")],
    output: Annotated[Path, typer.Option(help="Folder of the results.")],
    resume: Annotated[bool, typer.Option(help=RESUME_HELP)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE_HELP)] = False,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the best there is by default.")] = None,
    checkpointing: Annotated[bool, typer.Option(help="Gradient checkpointing: less memory, more time.")] = False,
    quantization: Annotated[Quantization | None, typer.Option(help=QUANTIZATION_HELP)] = None,
    generator_quantization: Annotated[
        GeneratorQuantization | None,
        typer.Option(help="Keep the generator's weights in 8 or 4 bits (needs bitsandbytes) or in fp8: not exact."),
    ] = None,
    take_turns: Annotated[
        bool, typer.Option(help="Generator and critic take turns on the device: less memory, more time, same LoRA.")
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            help="Take turns, and only the block that works is on the device, with checkpointing: the least memory, "
            "the same LoRA, much time for the way to the device."
        ),
    ] = False,
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="torch.compile: faster steps after minutes of warm-up. Not with --stream.")
    ] = False,
    tiny_decoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a tiny decoder (taesd, taesdxl, taesd3, taef1) for the gradient: less memory."),
    ] = None,
    critic_size: Annotated[
        int | None, typer.Option(min=1, help="The critic sees larger pictures shrunk to this many pixels squared.")
    ] = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="Goes before the recipe's, such as 'attention + feed-forward, last half' for less memory."),
    ] = None,
    referee: Annotated[
        Path | None, typer.Option(help="Folder of a second critic, which does not train but helps to judge the result.")
    ] = None,
) -> None:
    """Distils a recipe into a LoRA and judges what became of the pictures."""
    with clear_errors():
        from . import overlays
        from .core.devices import peak_memory
        from .core.errors import RecipeError
        from .critics import load_critic
        from .distillation import Recipe
        from .distillation.fallback import distill_by_plan
        from .distillation.report import save_before_after, save_progress, write_json
        from .evaluation.held_out import Examiner
        from .generators import load_generator

        plan = Recipe.load(recipe, build_overlay=overlays.build)
        plan = plan if lora_targets is None else replace(plan, lora_targets=lora_targets)
        if not plan.prompts:
            raise RecipeError(f"{recipe} names no prompts. Add a list: prompts = ['a photo of a mountain lake'].")
        resume_from = _checkpoint_to_resume(_make_folder(output), resume, overwrite)
        bits = generator_quantization and generator_quantization.value, quantization and quantization.value
        found = cli_memory.fit(plan, (generator, critic), device, bits, _asked(checkpointing, take_turns, stream))
        memory = found.expected.plan
        console.print(f"Memory plan: {found.line}", soft_wrap=True)
        maker = load_generator(
            generator,
            prompts=[*plan.prompts, *plan.held_out],
            device=device,
            height=plan.height,
            width=plan.width,
            num_inference_steps=plan.num_inference_steps,
            gradient_checkpointing=memory.generator.checkpointing,
            offload=memory.generator.offload,
            quantization=bits[0],
            tiny_decoder=tiny_decoder,
            compile=compile_blocks,
        )
        judge = load_critic(
            critic,
            device=device,
            quantization=bits[1],
            offload=memory.critic.offload,
            gradient_checkpointing=memory.critic.checkpointing,
            max_size=critic_size,
        )

        def arrange(memory: MemoryPlan) -> None:
            maker.arrange(memory.generator.offload, memory.generator.checkpointing)
            judge.arrange(memory.critic.offload, memory.critic.checkpointing)

        second = None
        if referee is not None:
            second = load_critic(referee, device=device, offload=memory.critic.offload)
        with StopOnInterrupt() as should_stop, progress_bars(plan.train_steps) as bars:
            examiner = Examiner(maker, {"default": judge}, plan, referee=second, on_picture=bars.on_picture)
            examiner.look(lora_scale=0.0)
            try:
                result = distill_by_plan(
                    maker,
                    judge,
                    plan,
                    found.expected,
                    found.sizes,
                    arrange,
                    on_step=bars.on_step,
                    should_stop=should_stop,
                    resume_from=resume_from,
                    checkpoint_path=output / CHECKPOINT,
                    on_anchor=bars.on_anchor,
                )
            except DistillationError as error:
                _save_partial(error.result, output)
                raise
            _save_partial(result, output)  # before the pictures, for which memory may not do
            seen = examiner.compare(examiner.look(lora_scale=1.0))
        result.save(output / LORA, verdict=seen.to_dict())
        if result.stop_reason == "interrupted":
            _say_how_to_resume(result, output)
        save_progress(output / "progress.png", result.history, plan.questions)
        captions = [[*plan.prompts, *plan.held_out][i] for i in examiner.pairs.indices]
        save_before_after(output / "before_after.png", seen.before.images, seen.after.images, captions)
        report = {**result.history_summary(), "pairs": len(examiner.pairs), **seen.to_dict(), "recipe": plan.to_dict()}
        write_json(output / "report.json", report)
        _print_measures(report)
        _print_verdict(seen.verdict)
        console.print(f"Most memory in use: {peak_memory(maker.device) / 1e9:.1f} GB")
        console.print(f"Written to {output}: lora.safetensors, before_after.png, progress.png, report.json")


@app.command()
def ask(
    critic: Annotated[Path, typer.Option(help="Folder of a transformers vision-language model.")],
    image: Annotated[Path, typer.Option(help="A picture file.")],
    question: Annotated[str, typer.Option(help="What to ask.")],
    answer: Annotated[str, typer.Option(help="The answer whose probability is shown.")] = "Yes",
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu; the best there is by default.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help=QUANTIZATION_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON.")] = False,
) -> None:
    """Asks a critic one question about a picture."""
    with clear_errors():
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        from .critics import load_critic
        from .distillation import Question

        try:
            pixels = pil_to_tensor(Image.open(image).convert("RGB"))[None].float() / 255
        except OSError as error:
            raise DualProcessError(f"Could not read the picture {image}: {error}.") from error
        model = load_critic(critic, device=device, quantization=quantization and quantization.value)
        probability = float(model.log_likelihood(pixels, [Question(question, answer)]).exp())
        reply = model.answer(pixels, question)[0]
    if as_json:
        print(json.dumps({"question": question, "reply": reply, "answer": answer, "p_answer": probability}))
    else:
        print(f"{reply}   (P({answer}) = {probability:.3f})")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA of this pack or of another trainer, a safetensors file.")],
    to: Annotated[LoraFormat, typer.Option(help="Whose key names to write.")],
    output: Annotated[Path | None, typer.Option(help="The new file; by default beside the old one.")] = None,
) -> None:
    """Writes a LoRA under another tool's key names; its numbers and metadata stay."""
    with clear_errors():
        from .core.tensor_file import read_tensors, write_tensors
        from .generators.interchange import architecture_of, converted

        target = output or file.with_name(f"{file.stem}.{to.value}.safetensors")
        if target.exists():
            raise LoraFileError(f"{target} is there already. Choose another name with --output.")
        tensors, metadata = read_tensors(file)
        write_tensors(target, converted(tensors, to.value, architecture_of(metadata)), metadata)
        console.print(f"Wrote {target}", soft_wrap=True)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A LoRA, a safetensors file.")]) -> None:
    """Shows what a LoRA controls, how it was made, which model it is for, and what became of the pictures."""
    with clear_errors():
        from .core.tensor_file import read_tensors
        from .generators.inspection import facts

        table = Table(show_header=False, box=None)
        for name, value in facts(*read_tensors(file)):
            table.add_row(Text(name, style="bold"), Text(value))
        Console(markup=False, emoji=False).print(table)


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DualProcessError(f"Could not make the output folder {folder}: {error}. Choose another.") from error
    return folder


def _asked(checkpointing: bool, take_turns: bool, stream: bool) -> MemoryPlan | None:
    """The plan that the flags name; None where the user leaves it to the free memory."""
    from .distillation.memory import MemoryPlan, Place

    if not (checkpointing or take_turns or stream):
        return None
    place = Place("blocks" if stream else take_turns, checkpointing or stream)
    return MemoryPlan("as asked", place, place, take_turns=take_turns or stream)


def _checkpoint_to_resume(folder: Path, resume: bool, overwrite: bool) -> Path | None:
    """What to go on from. An unfinished run is not lost unless the user says so."""
    from .distillation.checkpoint import Checkpoint

    path = folder / CHECKPOINT
    if resume and overwrite:
        raise DualProcessError("Expected --resume or --overwrite, got both. Go on or begin anew.")
    if resume or overwrite or not path.exists():
        return path if resume else None
    try:
        found = Checkpoint.load(path)
    except LoraFileError:  # nothing that a run could go on from
        return None
    if found.is_unfinished:
        raise DualProcessError(
            f"{folder} holds an unfinished run ({found.steps} of {found.train_steps} steps). Go on with it by "
            "--resume, begin anew by --overwrite, or choose another folder."
        )
    return None


def _save_partial(result: DistillationResult, folder: Path) -> None:
    """The LoRA and the checkpoint so far."""
    result.save(folder / LORA)
    result.save_checkpoint(folder / CHECKPOINT)


def _say_how_to_resume(result: DistillationResult, folder: Path) -> None:
    console.print(
        f"Interrupted after step {result.steps} of {result.recipe.train_steps}. The LoRA so far is in "
        f"{folder / LORA}; run the same command with --resume to go on."
    )


def _print_verdict(verdict: Verdict) -> None:
    console.print(verdict.text, style="bold green" if verdict.outcome == "learned" else "bold red")


def _print_measures(report: dict[str, Any]) -> None:
    table = Table("measure", "before", "after", title=f"{report['pairs']} held-out (prompt, noise) pairs")
    for name, before in report["before"].items():
        after = report["after"].get(name, float("nan"))
        rows = [(name, before, after)]
        if isinstance(before, dict):
            rows = [(f"{name}.{key}", before[key], after[key]) for key in before]
        for label, then, now in rows:
            table.add_row(label, f"{then:.3f}", f"{now:.3f}")
    console.print(table)


def main() -> None:
    """Entry point of `dual-process`."""
    app()
