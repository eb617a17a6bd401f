"""`dual-process train`: a recipe is distilled into a LoRA."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..distillation.result import DistillationError
from .memory import fit
from .shared import (
    CHECKPOINT,
    LORA,
    OVERWRITE_HELP,
    RESUME_HELP,
    StopOnInterrupt,
    checkpoint_to_resume,
    clear_errors,
    console,
    make_folder,
    print_measures,
    print_verdict,
    progress_bars,
    save_partial,
    say_how_to_resume,
)

if TYPE_CHECKING:
    from ..distillation.memory import MemoryPlan
    from ..distillation.result import DistillationResult
    from ..evaluation.held_out import Comparison, HeldOut

QUANTIZATION_HELP = "Load the critic in 8 or 4 bits (needs bitsandbytes)."


class Quantization(str, Enum):
    """Bits of a critic's weights."""

    eight = "8bit"
    four = "4bit"


class GeneratorQuantization(str, Enum):
    """How a generator's weights are kept."""

    eight = "8bit"
    four = "4bit"
    fp8 = "fp8"


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
    critic_device: Annotated[
        str | None, typer.Option(help="A device for the critic alone, such as cuda:1; the generator's by default.")
    ] = None,
    referee: Annotated[
        Path | None, typer.Option(help="Folder of a second critic, which does not train but helps to judge the result.")
    ] = None,
) -> None:
    """Distils a recipe into a LoRA and judges what became of the pictures."""
    with clear_errors():
        from .. import overlays
        from ..core.devices import peak_memory
        from ..core.errors import RecipeError
        from ..critics import load_critic
        from ..distillation import Recipe
        from ..distillation.fallback import distill_by_plan
        from ..evaluation.held_out import Examiner
        from ..generators import load_generator

        plan = Recipe.load(recipe, build_overlay=overlays.build)
        plan = plan if lora_targets is None else replace(plan, lora_targets=lora_targets)
        if not plan.prompts:
            raise RecipeError(f"{recipe} names no prompts. Add a list: prompts = ['a photo of a mountain lake'].")
        resume_from = checkpoint_to_resume(make_folder(output), resume, overwrite)
        bits = generator_quantization and generator_quantization.value, quantization and quantization.value
        apart = critic_device is not None
        asked = _asked(checkpointing, take_turns, stream)
        found = fit(plan, (generator, critic), device, bits, asked, apart, compile_blocks)
        memory = found.expected.plan
        offload = False if apart else memory.critic.offload
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
            device=critic_device or device,
            quantization=bits[1],
            offload=offload,
            gradient_checkpointing=memory.critic.checkpointing,
            max_size=critic_size,
        )

        def arrange(memory: MemoryPlan) -> None:
            maker.arrange(memory.generator.offload, memory.generator.checkpointing)
            judge.arrange(False if apart else memory.critic.offload, memory.critic.checkpointing)

        second = None
        if referee is not None:
            second = load_critic(referee, device=critic_device or device, offload=offload)
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
                    found.plans,
                    on_step=bars.on_step,
                    should_stop=should_stop,
                    resume_from=resume_from,
                    checkpoint_path=output / CHECKPOINT,
                    on_anchor=bars.on_anchor,
                )
            except DistillationError as error:
                save_partial(error.result, output)
                raise
            save_partial(result, output)  # before the pictures, for which memory may not do
            seen = examiner.compare(examiner.look(lora_scale=1.0))
        _write(output, result, seen, examiner.pairs)
        console.print(f"Most memory in use: {peak_memory(maker.device) / 1e9:.1f} GB")
        console.print(f"Written to {output}: lora.safetensors, before_after.png, progress.png, report.json")


def _write(folder: Path, result: DistillationResult, found: Comparison, pairs: HeldOut) -> None:
    """The LoRA with its verdict, the pictures and the report; what matters of them is shown."""
    from ..distillation.report import save_before_after, save_progress, write_json

    recipe = result.recipe
    result.save(folder / LORA, verdict=found.to_dict())
    if result.stop_reason == "interrupted":
        say_how_to_resume(result, folder)
    save_progress(folder / "progress.png", result.history, recipe.questions)
    captions = [[*recipe.prompts, *recipe.held_out][i] for i in pairs.indices]
    save_before_after(folder / "before_after.png", found.before.images, found.after.images, captions)
    report = {**result.history_summary(), "pairs": len(pairs), **found.to_dict(), "recipe": recipe.to_dict()}
    write_json(folder / "report.json", report)
    print_measures(report)
    print_verdict(found.verdict)


def _asked(checkpointing: bool, take_turns: bool, stream: bool) -> MemoryPlan | None:
    """The plan that the flags name; None where the user leaves it to the free memory."""
    from ..distillation.memory import MemoryPlan, Place

    if not (checkpointing or take_turns or stream):
        return None
    place = Place("blocks" if stream else take_turns, checkpointing or stream)
    return MemoryPlan("as asked", place, place, take_turns=take_turns or stream)
