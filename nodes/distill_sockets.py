"""Training a LoRA inside the graph, with a socket for each prompt: the node of version 0.1 and 0.2."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from .lora_model import TrainedLora
from .plan import PENALTY_WIDGETS
from .progress import Progress
from .questions import field_help
from .saving import workflow_metadata
from .training import (
    AUTO,
    BOTH,
    TURNS,
    critics_and_questions,
    fit_together,
    held_out,
    kept_if_it_fails,
    patchers,
    train,
    with_targets,
)
from .types import CATEGORY, Critic, Loss, VqaTerms, outside_inference_mode, to_comfy

MAX_PROMPTS = 32


class DistillLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..distillation import Anchors, Recipe
        from ..distillation.penalties import PENALTIES

        def help_of(name: str) -> str:
            return field_help(Recipe, name)

        def penalty_help(name: str) -> str:
            return f"Weight of a penalty: {PENALTIES[name].help}"

        return io.Schema(
            node_id="DualProcessDistillLoRA",
            display_name="Distill LoRA (a socket for each prompt)",
            is_deprecated=True,
            category=CATEGORY,
            description="Trains a LoRA until the critic gives the wanted answers about the model's pictures. The "
            "model itself is not changed. Distill LoRA takes its place.",
            search_aliases=["dual process", "train lora", "vlm distillation"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to teach, with any LoRAs already applied to it."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Autogrow.Input(
                    "conditionings",
                    template=io.Autogrow.TemplatePrefix(
                        io.Conditioning.Input("conditioning", tooltip="One training prompt; a new socket appears."),
                        prefix="conditioning",
                        min=1,
                        max=MAX_PROMPTS,
                    ),
                    tooltip="Training prompts: one socket each. More of them make a LoRA that holds for new prompts.",
                ),
                io.Latent.Input("latent", tooltip="An empty latent: its size is the size of the training pictures."),
                Loss.Input("loss", tooltip="What the critic is asked, from VQA Loss."),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; needed only where cfg is not 1."
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="Noise levels to use instead of steps and scheduler, the last 0."
                ),
                io.Int.Input("train_steps", default=100, min=1, max=100_000, tooltip=help_of("train_steps")),
                io.Float.Input(
                    "learning_rate",
                    default=5e-5,
                    min=1e-7,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip=f"{help_of('learning_rate')} 5e-5 suits Flux; the demo models take 5e-4.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip=help_of("seed"),
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip=help_of("batch_size")),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=200,
                    tooltip="Sampler steps of a whole picture, of which a random one is trained. 1 to 4 for Flux "
                    "schnell, 20 to 28 for Flux dev.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="simple",
                    tooltip="How the sampler's noise levels are spread, as in KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance scale; 1 for distilled models such as Flux.",
                ),
                io.Int.Input("rank", default=16, min=1, max=512, advanced=True, tooltip=help_of("rank")),
                io.Float.Input(
                    "lora_alpha",
                    default=40.0,
                    min=0.01,
                    max=4096.0,
                    step=0.5,
                    advanced=True,
                    tooltip=help_of("lora_alpha"),
                ),
                io.Combo.Input(
                    "lr_schedule",
                    options=["constant", "cosine"],
                    advanced=True,
                    tooltip=f"Learning-rate schedule: {help_of('lr_schedule')}",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip=help_of("gradient_accumulation"),
                ),
                io.Float.Input(
                    "velocity_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    advanced=True,
                    tooltip=f"{penalty_help('velocity')} 0.5 to 1 guards against fooling the critic.",
                ),
                io.Float.Input(
                    "range_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    advanced=True,
                    tooltip=penalty_help("range"),
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0.001,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip=help_of("max_grad_norm"),
                ),
                io.Float.Input(
                    "stop_probability",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Stop early when P(answer) of every question is above this for five steps in a row; 1 "
                    "never stops early.",
                ),
                io.Combo.Input(
                    "timesteps",
                    options=["sampler", "renoise"],
                    advanced=True,
                    tooltip=f"Which noise level is trained: {help_of('timesteps')}",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    advanced=True,
                    tooltip="Compute each block again in the backward pass: much less memory, a third more time, the "
                    "same result.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO, BOTH, TURNS],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Whether the model and the critics are on the device together, or take turns there, which "
                    "needs less memory and more time for the same LoRA. auto: turns where they do not fit.",
                ),
                io.Float.Input(
                    "anchor_weight",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip=f"{penalty_help('anchors')} 1 keeps pictures well; leave velocity_weight at 0 then. A step "
                    "takes about half as long again.",
                ),
                io.Int.Input(
                    "anchor_pool",
                    default=Anchors().pool,
                    min=1,
                    max=4096,
                    optional=True,
                    advanced=True,
                    tooltip=f"{field_help(Anchors, 'pool')} Made before training, where anchor_weight is above 0.",
                ),
                Critic.Input(
                    "referee",
                    optional=True,
                    tooltip="A second critic, which does not train but helps to judge whether the first was fooled.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The trained LoRA: to Save Distilled LoRA or Load LoRA Model."
                ),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step in nats, for Plot Loss Graph."),
                io.Image.Output(display_name="before", tooltip="A picture of each prompt without the LoRA."),
                io.Image.Output(display_name="after", tooltip="The same prompts and noise with the LoRA."),
                io.String.Output(
                    display_name="verdict",
                    tooltip="What became of the pictures: learned, damaged (what was lost), hacked, or not learned.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        conditionings: dict[str, Any],
        latent: dict[str, Any],
        loss: VqaTerms,
        steps: int,
        scheduler: str,
        cfg: float,
        gradient_checkpointing: bool,
        negative: Any = None,
        sigmas: Tensor | None = None,
        memory: str = AUTO,
        referee: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..evaluation.held_out import Examiner
        from ..generators.comfy.generator import ComfyGenerator

        prompts = [c for c in conditionings.values() if c is not None]
        with outside_inference_mode(grad=True):
            critics, recipe = make_recipe(loss, settings)
            generator = ComfyGenerator(
                model,
                vae,
                prompts,
                latent=latent,
                negative=negative,
                cfg=cfg,
                steps=steps,
                scheduler=scheduler,
                sigmas=sigmas,
                gradient_checkpointing=gradient_checkpointing,
            )
            take_turns = memory == TURNS or (memory == AUTO and not fit_together(generator, critics, recipe.batch_size))
            generator.loaded_with = None if take_turns else patchers(critics)
            progress = Progress(recipe, cls.hidden.unique_id)
            pairs = held_out(recipe.seed, len(prompts))
            examiner = Examiner(generator, critics, recipe, pairs, referee, progress.on_picture)
            before = examiner.look(0.0).images[: len(prompts)]
            result = train(generator, critics, recipe, progress, take_turns)
            with kept_if_it_fails(result):
                found = examiner.compare(examiner.look(1.0))
                lora = TrainedLora.of(result, workflow_metadata(cls.hidden), found.to_dict())
        losses = {"loss": [report.loss for report in result.history]}
        after = found.after.images[: len(prompts)]
        return io.NodeOutput(lora, losses, to_comfy(before), to_comfy(after), found.verdict.text)


def make_recipe(loss: VqaTerms, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The critics by name, and the recipe that asks each its own questions."""
    from ..distillation import Anchors, Recipe

    critics, questions = critics_and_questions(loss)
    settings = dict(settings)
    if settings["stop_probability"] >= 1:
        settings["stop_probability"] = None
    penalties = {name: settings.pop(widget, 0.0) for name, widget in PENALTY_WIDGETS.items()}
    anchors = Anchors(pool=settings.pop("anchor_pool", Anchors().pool))
    settings |= {"penalties": penalties, "anchors": anchors}
    return critics, Recipe(questions=questions, **with_targets(loss, settings))


NODES = [DistillLoRA]
