"""Training a LoRA inside the graph."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..core.protocols import LORA_TARGETS
from .memory import BLOCKS
from .plan import AUTO, BY_PATTERN, FROM_PRESET, preset_names
from .questions import field_help
from .teaching import BEST, LAST, NO_LORA, Sources, runs_left_unfinished, teach
from .training import AUTO as AUTO_MEMORY
from .training import BOTH, TURNS
from .types import CATEGORY, Checkpoint, Critic, Loss, Prompts, PromptSet, VqaTerms, outside_inference_mode

NO_QUESTIONS = "none"


class Distill(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..distillation import Anchors, Recipe
        from ..distillation.penalties import PENALTIES
        from ..distillation.recipe import AVERAGED, SAMPLED

        def help_of(name: str) -> str:
            return field_help(Recipe, name)

        def weight(name: str) -> io.Float.Input:
            return io.Float.Input(
                *(f"{name}_weight",),
                default=-1.0,
                min=-1.0,
                max=1000.0,
                step=0.05,
                advanced=True,
                tooltip=f"Weight of a penalty: {PENALTIES[name.replace('anchor', 'anchors')].help} 0: off. "
                "-1: from the preset.",
            )

        return io.Schema(
            node_id="DualProcessDistill",
            display_name="Distill LoRA",
            category=CATEGORY,
            description="Trains a LoRA until the critic gives the wanted answers about the model's pictures. The "
            "model itself is not changed. The preset fits the settings to the MODEL; whatever is set below goes before "
            "it. Stop and keep ends training well; Cancel keeps the LoRA in models/loras/dual_process/interrupted.",
            search_aliases=["dual process", "train lora", "vlm distillation"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to teach, with any LoRAs already applied to it."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Prompts.Input("prompts", tooltip="What to train on, from Training Prompts."),
                Loss.Input("loss", tooltip="What the critic is asked, from VQA Loss."),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *preset_names()],
                    default=AUTO,
                    tooltip="Where settings come from that are not set below. auto: what suits the MODEL; the node "
                    "shows which it took.",
                ),
                io.Int.Input(
                    "train_steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="How often the LoRA is improved. More steps learn a hard control better and take longer. "
                    "0: from the preset (100, or 200 for the demo models).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="How far each step goes. Too much fools the critic and spoils the pictures, too little "
                    "learns nothing. 0: from the preset (5e-5, or 5e-4 for the demo models).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,  # what a browser holds exactly
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip=help_of("seed"),
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="An empty latent, for another size of the training pictures than the preset's.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; needed only where cfg is not 1."
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="Noise levels to use instead of steps and scheduler, the last 0."
                ),
                Checkpoint.Input(
                    "resume", optional=True, tooltip="A run to go on with, from Load Distillation Checkpoint."
                ),
                Critic.Input(
                    "referee",
                    optional=True,
                    tooltip="A second critic, which does not train but helps to judge whether the first was fooled.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    advanced=True,
                    tooltip="Width of the training pictures in pixels. 0: from the preset.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    advanced=True,
                    tooltip="Height of the training pictures in pixels. 0: from the preset.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip=f"{help_of('batch_size')} 0: from the preset.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=200,
                    advanced=True,
                    tooltip="Sampler steps of a whole picture, of which a random one is trained. 0: from the preset.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[FROM_PRESET, *comfy.samplers.SCHEDULER_NAMES],
                    default=FROM_PRESET,
                    advanced=True,
                    tooltip="How the sampler's noise levels are spread, as in KSampler.",
                ),
                io.Float.Input(
                    "cfg",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Classifier-free guidance scale; 1 for distilled models such as Flux. -1: from the preset.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=512,
                    advanced=True,
                    tooltip=f"{help_of('rank')} 0: from the preset (16).",
                ),
                io.Float.Input(
                    "lora_alpha",
                    default=0.0,
                    min=0.0,
                    max=4096.0,
                    step=0.5,
                    advanced=True,
                    tooltip=f"{help_of('lora_alpha')} 0: from the preset.",
                ),
                io.Combo.Input(
                    "lr_schedule",
                    options=[FROM_PRESET, "constant", "cosine"],
                    default=FROM_PRESET,
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
                weight("anchor"),
                io.Int.Input(
                    "anchor_pool",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip=f"{field_help(Anchors, 'pool')} Made before training, where anchors weigh. "
                    "0: from the preset.",
                ),
                weight("velocity"),
                weight("range"),
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
                    tooltip="Whether blocks may be computed again in the backward pass: much less memory, a third more "
                    "time, the same result. With memory auto this is done only where memory is short.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO_MEMORY, BOTH, TURNS, BLOCKS],
                    default=AUTO_MEMORY,
                    advanced=True,
                    tooltip="Whether the model and the critics are on the device together, take turns there, or pass "
                    "through it block by block: less memory and more time, in this order, for the same LoRA. auto: the "
                    "fastest that fits. The node shows what was taken.",
                ),
                io.Int.Input(
                    "look_every",
                    default=20,
                    min=0,
                    max=10_000,
                    advanced=True,
                    tooltip="Steps between two looks at held-out pictures, which the node shows and the critic judges. "
                    "0: only before and after.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="Stop early when so many looks at held-out pictures in a row were no better than the best "
                    "one. 0: never.",
                ),
                io.Combo.Input(
                    "give",
                    options=[LAST, BEST],
                    default=LAST,
                    advanced=True,
                    tooltip="Which LoRA comes out: that of the last step, or of the best look at held-out pictures. "
                    "The other one lies beside the run's report.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=50,
                    min=0,
                    max=10_000,
                    advanced=True,
                    tooltip="Steps between two checkpoints, of which the last two are kept while the run goes on, for "
                    "Load Distillation Checkpoint. 0: none.",
                ),
                io.Combo.Input(
                    "existing_lora",
                    options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=NO_LORA,
                    advanced=True,
                    tooltip="A LoRA to start from, of this pack or of others; its rank must not be above rank.",
                ),
                io.Combo.Input(
                    "keep_questions",
                    options=[FROM_PRESET, NO_QUESTIONS],
                    default=FROM_PRESET,
                    advanced=True,
                    tooltip="What the critic is asked besides, so that the pictures keep what the prompts say. With a "
                    "Keep Question of your own, only that one counts.",
                ),
                weight("structure"),
                io.Combo.Input(
                    "lora_targets",
                    options=[FROM_PRESET, *LORA_TARGETS, BY_PATTERN],
                    default=FROM_PRESET,
                    optional=True,
                    advanced=True,
                    tooltip="Which layers the LoRA changes. all linear: all linear layers of the model's blocks. "
                    "first half: only in the first half of the blocks, which moves things rather than painting over "
                    "them. last half: only in the last half, for less memory and time at the cost of the picture.",
                ),
                io.String.Input(
                    "target_pattern",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For lora_targets 'by pattern': a regular expression that a layer's whole name, as "
                    r"ComfyUI or diffusers has it, must match, such as double_blocks\.\d+\.img_attn\..*",
                ),
                io.Vae.Input(
                    "gradient_vae",
                    optional=True,
                    tooltip="A smaller VAE for the same latents, such as taef1 for Flux from Load VAE: training makes "
                    "its pictures by it, for less memory and time. Finished pictures are the vae's.",
                ),
                io.Combo.Input(
                    "wordings",
                    options=[SAMPLED, AVERAGED],
                    default=SAMPLED,
                    optional=True,
                    advanced=True,
                    tooltip=help_of("wordings"),
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora", tooltip="The trained LoRA: to Save Distilled LoRA or Load LoRA Model."
                ),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="Held-out pictures before and after, side by side and labelled, with the overlay.",
                ),
                io.Image.Output(display_name="before", tooltip="Held-out pictures without the LoRA."),
                io.Image.Output(display_name="after", tooltip="The same prompts and noise with the LoRA."),
                io.String.Output(
                    display_name="verdict",
                    tooltip="What became of the pictures: learned, damaged (what was lost), hacked, or not learned.",
                ),
                io.LossMap.Output(display_name="loss_map", tooltip="Loss of every step in nats, for Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Changes after a run that was stopped: half a LoRA is never served from the cache."""
        return runs_left_unfinished(cls.hidden.unique_id if cls.hidden else None)

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompts: PromptSet,
        loss: VqaTerms,
        preset: str,
        latent: dict[str, Any] | None = None,
        negative: Any = None,
        sigmas: Tensor | None = None,
        resume: Any = None,
        referee: Any = None,
        gradient_vae: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        sources = Sources(model, vae, prompts, loss, latent, negative, sigmas, resume, referee, gradient_vae)
        with outside_inference_mode(grad=True):
            taught = teach(sources, preset, widgets, cls.hidden)
        return io.NodeOutput(taught.lora, taught.comparison, taught.before, taught.after, taught.verdict, taught.losses)


NODES = [Distill]
