"""Settings that suit an architecture, with their source: what a setting that nobody touched follows.

A new architecture is an entry of `PRESETS` under the name that its generator reports (`generator.info.architecture`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..core.protocols import ATTENTION, ATTENTION_AND_FEED_FORWARD, FIRST_HALF
from .question import KEEP, PROMPT, Question
from .recipe import Anchors

KEEP_WEIGHT = 0.5  # beside a control of weight 1


@dataclass(frozen=True)
class Preset:
    """What suits one kind of model."""

    name: str
    source: str = field(metadata={"help": "Where the settings come from."})
    recipe: Mapping[str, Any] = field(metadata={"help": "Fields of a Recipe."})
    height: int = field(default=512, metadata={"help": "Height of the training pictures in pixels."})
    width: int = field(default=512, metadata={"help": "Width of the training pictures in pixels."})
    steps: int = field(default=1, metadata={"help": "Sampler steps of a whole picture."})
    scheduler: str = field(default="simple", metadata={"help": "How the sampler's noise levels are spread."})
    cfg: float = field(default=1.0, metadata={"help": "Classifier-free guidance scale; 1 for distilled models."})

    things: tuple[str, ...] = field(default=(), metadata={"help": "Words that keep questions ask for, if any."})
    keep_text: str = field(
        default=f'Does this figure show "{PROMPT}"? Please answer Yes or No.',  # VQAScore, Lin et al. 2024
        metadata={"help": "A keep question, about a thing ({}) or a prompt, as the preset's critics read it."},
    )
    distilled: bool = field(default=False, metadata={"help": "Whether guidance is built in, so that cfg stays 1."})
    least_steps: int = field(default=1, metadata={"help": "Sampler steps below which pictures are not finished."})
    most_steps: int | None = field(default=None, metadata={"help": "Sampler steps above which nothing is gained."})
    most_pixels: int | None = field(default=None, metadata={"help": "Height times width that the model can paint."})

    def describe(self) -> str:
        """One line that a user reads."""
        recipe = self.recipe
        penalties = ", ".join(f"{name} {weight:g}" for name, weight in recipe["penalties"].items())
        return (
            f"{self.name}: {recipe['train_steps']} steps of {recipe['batch_size']} at {recipe['learning_rate']:g}, "
            f"rank {recipe['rank']}, alpha {recipe['lora_alpha']:g}, {self.width} × {self.height} pixels, "
            f"{self.steps} sampler step{'s' * (self.steps != 1)}, cfg {self.cfg:g}; {penalties}. {self.source}"
        )


PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "train_steps": 100,
        "learning_rate": 5e-5,
        "lr_schedule": "constant",
        "rank": 16,
        "lora_alpha": 40.0,
        "lora_targets": ATTENTION_AND_FEED_FORWARD,
        "batch_size": 1,
        "penalties": MappingProxyType({"anchors": 1.0}),
        "anchors": Anchors(pool=32, least=8),
    }
)
# For models whose pictures take many steps: fewer of them are made before training.
MANY_STEPS: Mapping[str, Any] = MappingProxyType({**PAPER, "anchors": Anchors(pool=16, least=8)})
DEMO: Mapping[str, Any] = MappingProxyType(
    {
        **PAPER,
        "train_steps": 200,
        "learning_rate": 5e-4,
        "adam_beta2": 0.99,  # with 0.999 one run in ten loses the picture
        "lr_schedule": "cosine",
        "lora_alpha": 64.0,
        "batch_size": 4,
        "penalties": MappingProxyType({"anchors": 1.0, "range": 1.0}),
        "anchors": Anchors(),
    }
)
# What moves things is taught to the blocks in which the picture is still a plan.
STROKES: Mapping[str, Any] = MappingProxyType({**DEMO, "lora_targets": f"{ATTENTION}{FIRST_HALF}"})
REFERENCE = "As the paper's authors train it; anchors as the demo world has taught us."
DEFAULTS = "Steps and guidance are the defaults of diffusers' {}; training is the paper's for Flux, untried here."

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "demo": Preset(
            *("demo models", "Figures in benchmarks/README.md.", DEMO),
            height=112,
            width=112,
            things=("house", "tree", "ball"),
            keep_text="Is there a {} in the image?",
            distilled=True,
            most_steps=4,
            most_pixels=160 * 160,
        ),
        "demo-strokes": Preset(
            *("demo models of the second world", "Figures in benchmarks/README.md.", STROKES),
            height=128,
            width=128,
            things=("house", "tree", "ball"),
            keep_text="Is there a {} in the image?",
            distilled=True,
            most_steps=4,
            most_pixels=160 * 160,
        ),
        "flux-1-schnell": Preset("Flux schnell", REFERENCE, PAPER, distilled=True, most_steps=8),
        "flux-1-dev": Preset(
            *("Flux dev", REFERENCE, MANY_STEPS),
            steps=28,
            distilled=True,
            least_steps=8,
        ),
        "sd-1": Preset(
            "Stable Diffusion 1.x",
            REFERENCE,
            MANY_STEPS,
            steps=50,
            scheduler="ddim_uniform",
            cfg=7.5,
            least_steps=10,
        ),
        "flux-2-klein": Preset(
            "FLUX.2 klein",
            "The paper's for Flux schnell, with the 4 steps and no guidance that Black Forest Labs names for the "
            "distilled klein; klein base wants more of both.",
            PAPER,
            steps=4,
            distilled=True,
            most_steps=8,
        ),
        "flux-2-dev": Preset(
            "FLUX.2 dev",
            "The paper's for Flux dev, with the 50 steps of diffusers' Flux2Pipeline; its guidance comes with the "
            "prompt.",
            MANY_STEPS,
            steps=50,
            distilled=True,
            least_steps=8,
        ),
        "z-image": Preset(
            "Z-Image Turbo",
            "The paper's for Flux, with the 8 steps and no guidance that diffusers gives for Z-Image-Turbo; Z-Image "
            "itself wants more of both.",
            PAPER,
            steps=8,
            distilled=True,
            least_steps=4,
        ),
        "qwen-image": Preset(
            "Qwen-Image",
            DEFAULTS.format("QwenImagePipeline"),
            MANY_STEPS,
            steps=50,
            cfg=4.0,
            least_steps=10,
        ),
        "sana": Preset(
            "Sana",
            REFERENCE,
            {**MANY_STEPS, "learning_rate": 5e-6},
            steps=20,
            cfg=4.5,
            least_steps=10,
        ),
        "chroma": Preset(
            "Chroma",
            DEFAULTS.format("ChromaPipeline"),
            MANY_STEPS,
            steps=35,
            cfg=5.0,
            least_steps=10,
        ),
        "sd-xl": Preset(
            "Stable Diffusion XL",
            DEFAULTS.format("StableDiffusionXLPipeline"),
            MANY_STEPS,
            height=1024,
            width=1024,
            steps=50,
            scheduler="ddim_uniform",
            cfg=5.0,
            least_steps=10,
        ),
        "sd-3": Preset(
            "Stable Diffusion 3",
            DEFAULTS.format("StableDiffusion3Pipeline"),
            MANY_STEPS,
            height=1024,
            width=1024,
            steps=28,
            cfg=7.0,
            least_steps=10,
        ),
    }
)
GENERAL = Preset(
    "any other model",
    "The paper's for Flux, with 20 sampler steps: look at the result, and choose your own.",
    MANY_STEPS,
    steps=20,
)


def preset_for(architecture: str) -> Preset:
    """The preset of an architecture; `GENERAL` where there is none."""
    return PRESETS.get(architecture, GENERAL)


def keep_questions(preset: Preset, prompts: Sequence[str]) -> tuple[Question, ...]:
    """What a preset asks to be kept of prompts: that the picture shows the prompt, or each thing as the prompt says.

    A thing that a prompt leaves out weighs a third: most prompts name none.
    """
    if not preset.things:
        return (Question(preset.keep_text, weight=KEEP_WEIGHT, role=KEEP),)
    asked = []
    for thing in preset.things:
        named = [i for i, prompt in enumerate(prompts) if thing in prompt.lower().split()]
        left_out = [i for i in range(len(prompts)) if i not in named]
        for answer, numbers, weight in (("Yes", named, KEEP_WEIGHT), ("No", left_out, KEEP_WEIGHT / 3)):
            if numbers:
                text = preset.keep_text.format(thing)
                asked.append(Question(text, answer, weight, prompts=tuple(numbers), role=KEEP))
    return tuple(asked)
