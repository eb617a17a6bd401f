"""One step of the engine on models of any size, and what the ledger finds in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from full_size_models import CriticModels, GeneratorModels
from full_size_plans import Part, Plan
from ledger import GiB, Ledger, without_numbers
from quantized import quantize
from tiny_models.shared import WORDS
from torch import Tensor, nn

from dual_process import overlays
from dual_process.core.protocols import ModelInfo
from dual_process.core.residency import Visit, weights_of
from dual_process.core.streaming import blocks_of
from dual_process.critics import TransformersCritic
from dual_process.distillation import Question, Recipe
from dual_process.distillation.run import Run
from dual_process.generators import DiffusersGenerator
from dual_process.generators.diffusers.denoising import EncodedPrompts, decoding_parts
from dual_process.generators.settings import GeneratorSettings

OWN, SHARED = 14, 6  # words of a question of its own, and of all
NO_HASH = "0" * 64  # hashing would read the numbers
BITS = {"8bit": 8, "fp8": 8, "4bit": 4}
OFFLOAD = {"resident": False, "in its turn": True, "streamed": "blocks"}


def measure(
    generator: GeneratorModels, critic: CriticModels, size: int, questions: int, plan: Plan, dtype: torch.dtype
) -> dict[str, Any]:
    """Peaks in GiB and arithmetic in TFLOP of one step, the second or a later one."""
    parts = critic.parts()
    with without_numbers(lambda name: int(plan.cards == 2 and "critic" in name)) as ledger, ExitStack() as stack:
        teacher = build_generator(generator, size, plan.generator, dtype)
        judge = build_critic(critic, plan.critic, dtype, parts)
        watch(ledger, teacher, judge)
        stack.enter_context(moving(ledger, homes(teacher, judge, plan)))
        run = stack.enter_context(Run(teacher, judge, recipe(questions), take_turns=plan.turns))
        parameters = list(teacher.lora_parameters().values())
        moments = [torch.empty_like(p) for p in parameters for _ in range(2)]  # as from the second step on
        if "streamed" in (plan.generator.place, plan.critic.place):
            run.step()  # blocks that follow each other are fetched ahead from the second pass on
            moments = [t for state in run._optimizer.state.values() for t in state.values() if t.ndim]
        ledger.name(parameters, "LoRA")
        ledger.name(moments, "moments of the LoRA")
        ledger.reset()
        run.step()
    return {
        "peak_gib": ledger.peak / GiB,
        "peak_phase": ledger.peak_phase,
        "at_peak_gib": {name: size / GiB for name, size in ledger.at_peak.items() if size > GiB / 200},
        "peak_gib_by_phase": {name: size / GiB for name, size in ledger.peaks.items()},
        "peak_gib_by_card": [ledger.peaks_by_card[card] / GiB for card in range(plan.cards)],
        "tflop": sum(ledger.flops.values()) / 1e12,
        "tflop_by_phase": {name: count / 1e12 for name, count in ledger.flops.items()},
        "moved_gib": ledger.moved / GiB,
    }


def recipe(questions: int) -> Recipe:
    return Recipe(
        questions=tuple(Question(text, overlay=overlays.horizon(0.3)) for text in texts(questions)),
        prompts=("a prompt",),
        train_steps=3,
        num_inference_steps=1,
    )


def texts(count: int) -> list[str]:
    """Questions of 20 words, of which 6 are the same in all."""
    own = [[WORDS[(i + j) % len(WORDS)] for j in range(OWN)] for i in range(count)]
    return [" ".join([*WORDS[:SHARED], *words]) for words in own]


# Models


def build_generator(models: GeneratorModels, size: int, part: Part, dtype: torch.dtype) -> DiffusersGenerator:
    network, vae = frozen(models.network(), dtype), frozen(models.vae(), dtype)
    if part.weights in BITS:
        quantize(network, BITS[part.weights])
    conditions = {name: torch.randn(shape, dtype=dtype) for name, shape in models.conditions.items()}
    if models.masked:
        conditions["mask"] = torch.ones(1, conditions["sequence"].shape[1], dtype=torch.bool)
    settings = GeneratorSettings(
        height=size, width=size, gradient_checkpointing=part.checkpoints, offload=OFFLOAD[part.place]
    )
    prompts = EncodedPrompts(("a prompt",), (conditions,))
    scheduler = FlowMatchEulerDiscreteScheduler()
    generator = DiffusersGenerator(models.architecture, network, vae, scheduler, prompts, "generator", settings)
    generator._info = ModelInfo("generator", "", str(dtype), NO_HASH)
    return generator


def build_critic(models: CriticModels, part: Part, dtype: torch.dtype, parts: tuple[Any, Any]) -> TransformersCritic:
    """`parts` are the models', made where numbers are."""
    processor, config = parts
    model = frozen(models.model(config), dtype)
    if part.weights in BITS:
        quantize(model, BITS[part.weights])
    options = {"gradient_checkpointing": part.checkpoints, "by_block": part.place == "streamed"}
    critic = TransformersCritic(model, processor, "critic", **options)
    critic.__dict__["info"] = ModelInfo("critic", "", str(dtype), NO_HASH)
    return critic


def frozen(model: Any, dtype: torch.dtype) -> Any:
    return model.to(dtype).eval().requires_grad_(False)


# The ledger's names for them


def watch(ledger: Ledger, teacher: DiffusersGenerator, judge: TransformersCritic) -> None:
    """Says what is being done, and names all weights."""
    model = judge.model
    watched = {"network": teacher.network, "decoder": teacher.vae.decoder, "critic": model}
    for name, part in {**watched, "critic's eye": model.model.visual, "critic's head": model.lm_head}.items():
        ledger.watch(part, name)
    ledger.name(weights_of(teacher.vae), "encoder")
    ledger.name(weights_of(nn.ModuleList(decoding_parts(teacher.vae))), "decoder")
    ledger.name(weights_of(teacher.network), "network")
    ledger.name(weights_of(model), "critic")


def homes(teacher: DiffusersGenerator, judge: TransformersCritic, plan: Plan) -> dict[str, list[Tensor]]:
    """What lies elsewhere than on the card, by names for what comes and goes together."""
    found: dict[str, list[Tensor]] = {}
    if plan.turns:
        decoder = weights_of(nn.ModuleList(decoding_parts(teacher.vae)))
        found["encoder"] = [t for t in weights_of(teacher.vae) if not any(t is other for other in decoder)]
        found["decoder"] = decoder
        found |= by_block("network", teacher.network, plan.generator)
    if plan.critic.place != "resident":
        found |= by_block("critic", judge.model, plan.critic)
    return found


def by_block(name: str, module: nn.Module, part: Part) -> dict[str, list[Tensor]]:
    """A module's weights, those of its blocks apart where they come one by one."""
    blocks = blocks_of(module) if part.place == "streamed" else []
    found = {f"{name}, block {number}": weights_of(block) for number, block in enumerate(blocks)}
    inside = {id(tensor) for tensors in found.values() for tensor in tensors}
    return {name: [tensor for tensor in weights_of(module) if id(tensor) not in inside], **found}


@contextmanager
def moving(ledger: Ledger, parts: dict[str, Sequence[Tensor]]) -> Iterator[list[tuple[str, str]]]:
    """These weights are away while nobody visits them: what a `Visit` does on a device, as entries in the ledger.

    The value: what came and left, in order.
    """
    names = {id(tensor): name for name, tensors in parts.items() for tensor in tensors}
    guests: Counter[str] = Counter()
    events: list[tuple[str, str]] = []

    class Entry(Visit):
        def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
            found = [t for t in tensors if not t.requires_grad]
            self.names = dict.fromkeys(names[id(t)] for t in found if id(t) in names)
            self.coming = False

        def fetch(self) -> None:
            for name in self.names if not self.coming else ():
                guests[name] += 1
                if guests[name] == 1:
                    events.append(("come", name))
                    ledger.come(name)
            self.coming = True

        def settle(self) -> None:
            self.fetch()

        def leave(self) -> None:
            for name in self.names if self.coming else ():
                guests[name] -= 1
                if not guests[name]:
                    events.append(("leave", name))
                    ledger.leave(name)
            self.coming = False

    for name, tensors in parts.items():
        ledger.name(tensors, name)
        ledger.leave(name)
    with mock.patch.object(Visit, "kind", Entry):
        yield events
