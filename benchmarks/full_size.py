"""What a training step needs at full size: peak memory and arithmetic by part, without a GPU and without weights.

    python benchmarks/full_size.py                        # Flux schnell and Qwen2.5-VL-7B at 512 × 512, every plan
    python benchmarks/full_size.py --generator z-image --critic qwen3-vl-4b --size 1024 --plan turns+checkpoints

The engine's own step runs on real configurations with fake tensors (see ledger.py): one sampler step, batch 1, a LoRA
of rank 16 with its moments, in bf16.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler
from ledger import GiB, Ledger, without_numbers
from rich.console import Console
from rich.progress import track
from torch import nn

import dual_process
from dual_process import overlays
from dual_process.core.protocols import ModelInfo
from dual_process.core.residency import Visit
from dual_process.core.streaming import blocks_of
from dual_process.critics import TransformersCritic
from dual_process.distillation import Question, Recipe
from dual_process.distillation.run import Run
from dual_process.generators import DiffusersGenerator
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.architectures.flux_2 import FLUX_2_KLEIN
from dual_process.generators.architectures.qwen_image import QWEN_IMAGE
from dual_process.generators.architectures.z_image import Z_IMAGE
from dual_process.generators.diffusers.denoising import EncodedPrompts, decoding_parts
from dual_process.generators.settings import GeneratorSettings

sys.path.insert(0, str(Path(dual_process.__file__).parent / "tests"))
from tiny_models.qwen import write_qwen, write_qwen3
from tiny_models.shared import WORDS

TEXT = 256  # tokens of a prompt
OWN, SHARED = 14, 6  # words of a question of its own, and of all
NO_HASH = "0" * 64
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # what a critic's processor makes of a picture


class GeneratorName(str, Enum):
    flux_schnell = "flux-schnell"
    flux_2_klein = "flux2-klein"
    qwen_image = "qwen-image"
    z_image = "z-image"


class CriticName(str, Enum):
    qwen2_5_vl_7b = "qwen2.5-vl-7b"
    qwen3_vl_4b = "qwen3-vl-4b"


@dataclass(frozen=True)
class Plan:
    """Where weights and activations are."""

    turns: bool = False
    streams: bool = False
    generator_checkpoints: bool = False
    critic_checkpoints: bool = False


PLANS = {
    "resident": Plan(),
    "generator checkpoints": Plan(generator_checkpoints=True),
    "checkpoints": Plan(generator_checkpoints=True, critic_checkpoints=True),
    "turns": Plan(turns=True),
    "turns+checkpoints": Plan(turns=True, generator_checkpoints=True, critic_checkpoints=True),
    "streamed": Plan(turns=True, streams=True, generator_checkpoints=True, critic_checkpoints=True),
}


# Models


def flux_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def models(name: GeneratorName) -> tuple[Any, Any, Any, dict[str, tuple[int, ...]]]:
    """Architecture, network, VAE, and shapes of an encoded prompt's float tensors; all but the first random."""
    import diffusers

    if name == GeneratorName.flux_schnell:
        network = diffusers.FluxTransformer2DModel(guidance_embeds=False)
        return FLUX, network, flux_vae(), {"sequence": (1, TEXT, 4096), "pooled": (1, 768)}
    if name == GeneratorName.flux_2_klein:
        sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
        network = diffusers.Flux2Transformer2DModel(**sizes, guidance_embeds=False)
        return FLUX_2_KLEIN, network, diffusers.AutoencoderKLFlux2(), {"sequence": (1, TEXT, 7680)}
    if name == GeneratorName.qwen_image:
        network = diffusers.QwenImageTransformer2DModel()
        return QWEN_IMAGE, network, diffusers.AutoencoderKLQwenImage(), {"sequence": (1, TEXT, 3584)}
    return Z_IMAGE, diffusers.ZImageTransformer2DModel(), flux_vae(), {"sequence": (1, TEXT, 2560)}


CRITICS: dict[CriticName, tuple[dict[str, Any], dict[str, Any]]] = {  # the text's and the picture's part
    CriticName.qwen2_5_vl_7b: (
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    CriticName.qwen3_vl_4b: (
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
                "rope_theta": 5e6,
            },
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    ),
}


def critic_parts(name: CriticName) -> tuple[Any, Any]:
    """A processor whose tokenizer knows a few words, and the model's configuration."""
    from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen3VLConfig

    newer = name == CriticName.qwen3_vl_4b
    kind = Qwen3VLConfig if newer else Qwen2_5_VLConfig
    with tempfile.TemporaryDirectory() as folder:
        (write_qwen3 if newer else write_qwen)(Path(folder))
        processor, small = AutoProcessor.from_pretrained(folder), kind.from_pretrained(folder)
    processor.image_processor.size = PIXELS
    text, vision = CRITICS[name]
    ends = {f"{end}_token_id": getattr(small.text_config, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    named = ("image", "video", "vision_start", "vision_end")
    config = kind(
        text_config={**text, **ends, "max_position_embeddings": 128000},
        vision_config=vision,
        tie_word_embeddings=newer,
        **{f"{token}_token_id": getattr(small, f"{token}_token_id") for token in named},
    )
    config._attn_implementation = "sdpa"
    return processor, config


def built(name: CriticName, config: Any) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

    newer = name == CriticName.qwen3_vl_4b
    return frozen((Qwen3VLForConditionalGeneration if newer else Qwen2_5_VLForConditionalGeneration)(config))


def frozen(model: Any) -> Any:
    return model.to(torch.bfloat16).eval().requires_grad_(False)


# The step


def measure(generator: GeneratorName, critic: CriticName, size: int, questions: int, plan: Plan) -> dict[str, Any]:
    """Peaks in GiB and arithmetic in TFLOP of one step, the second or a later one."""
    processor, config = critic_parts(critic)
    recipe = Recipe(
        questions=tuple(Question(text, overlay=overlays.horizon(0.3)) for text in texts(questions)),
        prompts=("a prompt",),
        train_steps=1,
        num_inference_steps=1,
    )
    with ExitStack() as stack:
        ledger = stack.enter_context(without_numbers())
        teacher = build_generator(generator, size, plan)
        judge = TransformersCritic(
            built(critic, config),
            processor,
            critic.value,
            gradient_checkpointing=plan.critic_checkpoints,
            by_block=plan.streams,
        )
        judge.__dict__["info"] = ModelInfo(critic.value, "", "bfloat16", NO_HASH)
        network, model, decoder = teacher.network, judge.model, nn.ModuleList(decoding_parts(teacher.vae))
        parts = {
            **named(ledger, "network", network, blocks_of(network) if plan.streams else ()),
            **named(ledger, "critic", model, blocks_of(model) if plan.streams else ()),
            **named(ledger, "decoder", decoder),
        }
        watched = {"network": network, "decoder": teacher.vae.decoder, "critic": model}
        for name, part in {**watched, "critic's eye": model.model.visual, "critic's head": model.lm_head}.items():
            ledger.watch(part, name)
        if plan.turns:
            stack.enter_context(moving(ledger, parts))
        run = stack.enter_context(Run(teacher, judge, recipe, take_turns=plan.turns))
        parameters = list(teacher.lora_parameters().values())
        moments = [torch.empty_like(p) for p in parameters for _ in range(2)]  # as from the second step on
        ledger.name(parameters, "LoRA")
        ledger.name(moments, "moments of the LoRA")
        ledger.reset()
        run.step()
    gib = {name: size / GiB for name, size in ledger.at_peak.items() if size > GiB / 200}
    return {
        "peak_gib": ledger.peak / GiB,
        "peak_phase": ledger.peak_phase,
        "at_peak_gib": gib,
        "peak_gib_by_phase": {name: size / GiB for name, size in ledger.peaks.items()},
        "tflop": sum(ledger.flops.values()) / 1e12,
        "tflop_by_phase": {name: count / 1e12 for name, count in ledger.flops.items()},
        "moved_gib": ledger.moved / GiB,
    }


def build_generator(name: GeneratorName, size: int, plan: Plan) -> DiffusersGenerator:
    architecture, network, vae, shapes = models(name)
    frozen(network), frozen(vae)
    conditions = {part: torch.randn(shape, dtype=torch.bfloat16) for part, shape in shapes.items()}
    if name in (GeneratorName.qwen_image, GeneratorName.z_image):
        conditions["mask"] = torch.ones(1, TEXT, dtype=torch.bool)
    settings = GeneratorSettings(
        height=size,
        width=size,
        gradient_checkpointing=plan.generator_checkpoints,
        offload="blocks" if plan.streams else plan.turns,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    prompts = EncodedPrompts(("a prompt",), (conditions,))
    generator = DiffusersGenerator(architecture, network, vae, scheduler, prompts, name.value, settings)
    generator._info = ModelInfo(name.value, "", "bfloat16", NO_HASH)  # hashing would read the numbers
    return generator


@contextmanager
def moving(ledger: Ledger, parts: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    """Weights are away while nobody visits them: what a `Visit` does on a device, as entries in the ledger."""
    names = {id(tensor): name for name, tensors in parts.items() for tensor in tensors}
    guests: Counter[str] = Counter()

    class Entry(Visit):
        def __init__(self, tensors: Iterable[torch.Tensor], device: torch.device) -> None:
            self.names = {names[id(tensor)] for tensor in tensors if id(tensor) in names}
            self.coming = False

        def fetch(self) -> None:
            if not self.coming:
                self.coming = True
                for name in self.names:
                    guests[name] += 1
                    ledger.come(name)

        def settle(self) -> None:
            self.fetch()

        def leave(self) -> None:
            for name in self.names if self.coming else ():
                guests[name] -= 1
                if not guests[name]:
                    ledger.leave(name)
            self.coming = False

    for name in parts:
        ledger.leave(name)
    with mock.patch.object(Visit, "kind", Entry):
        yield


def named(ledger: Ledger, name: str, module: Any, blocks: Iterable[Any] = ()) -> dict[str, list[torch.Tensor]]:
    """A module's weights under this name in the ledger, its blocks under names of their own."""
    parts = {name: [*module.parameters(), *module.buffers()]}
    for number, block in enumerate(blocks):
        parts[f"{name}, block {number}"] = own = [*block.parameters(), *block.buffers()]
        parts[name] = [tensor for tensor in parts[name] if not any(tensor is other for other in own)]
    for part, tensors in parts.items():
        ledger.name(tensors, part)
    return parts


def texts(count: int) -> list[str]:
    """Questions of 20 words, of which 6 are the same in all."""
    own = [[WORDS[(i + j) % len(WORDS)] for j in range(OWN)] for i in range(count)]
    return [" ".join([*WORDS[:SHARED], *words]) for words in own]


def main(
    generator: Annotated[GeneratorName, typer.Option(help="What is trained.")] = GeneratorName.flux_schnell,
    critic: Annotated[CriticName, typer.Option(help="What judges.")] = CriticName.qwen2_5_vl_7b,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 512,
    questions: Annotated[list[int] | None, typer.Option(help="How many are asked; may be repeated.")] = None,
    plan: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(PLANS)}; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, else a Markdown table.")] = False,
) -> None:
    """One row for each plan and number of questions; one to three minutes each on one core."""
    rows = []
    asked = [(name, count) for name in plan or PLANS for count in questions or [1]]
    for name, count in track(asked, console=Console(stderr=True)):
        found = measure(generator, critic, size, count, PLANS[name])
        rows.append(
            {
                "generator": generator.value,
                "critic": critic.value,
                "size": size,
                "plan": name,
                "questions": count,
                **found,
            }
        )
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| generator | critic | size | plan | questions | peak GiB | in | TFLOP | GiB moved |", "|---" * 9 + "|"]
    for row in rows:
        figures = f"{row['peak_gib']:.1f} | {row['peak_phase']} | {row['tflop']:.1f} | {row['moved_gib']:.1f}"
        names = " | ".join(str(row[key]) for key in ("generator", "critic", "size", "plan", "questions"))
        lines.append(f"| {names} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
