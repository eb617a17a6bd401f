"""What a run is to be: the preset of the MODEL, and whatever the user has set instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

AUTO = "auto"
FROM_PRESET = "from the preset"
BY_PATTERN = "by pattern"
PENALTY_WIDGETS = {
    "velocity": "velocity_weight",
    "range": "range_weight",
    "anchors": "anchor_weight",
    "structure": "structure_weight",
}


# Widgets of Distill LoRA as they are where nobody has touched them.
UNTOUCHED: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("train_steps", "learning_rate", "rank", "lora_alpha", "batch_size", "anchor_pool"), 0),
        **dict.fromkeys(("width", "height", "steps"), 0),
        **dict.fromkeys(("cfg", *PENALTY_WIDGETS.values()), -1.0),
        **dict.fromkeys(("lr_schedule", "scheduler", "lora_targets"), FROM_PRESET),
    }
)


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    Attributes:
        recipe: fields of a Recipe besides questions and prompts.
        notes: what the user should know before training: which settings hardly suit the model.
    """

    preset: Any  # distillation.Preset
    recipe: Mapping[str, Any]
    height: int
    width: int
    steps: int
    scheduler: str
    cfg: float
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line that the user reads in the node."""
        as_run = replace(
            self.preset,
            recipe=self.recipe,
            height=self.height,
            width=self.width,
            steps=self.steps,
            scheduler=self.scheduler,
            cfg=self.cfg,
        )
        return as_run.describe()


def preset_names() -> dict[str, Any]:
    """Every preset by the name that the user sees."""
    from ..distillation import GENERAL, PRESETS

    return {preset.name: preset for preset in (*PRESETS.values(), GENERAL)}


def make_plan(
    preset: str,
    architecture: str,
    widgets: Mapping[str, Any],
    latent: tuple[int, int] | None = None,
    sigmas: int | None = None,
    resumed: Any = None,
) -> Plan:
    """The preset that was chosen, or the architecture's, changed by the widgets that the user has touched.

    Args:
        preset: "auto" or a preset's name.
        architecture: as the generator reports it.
        widgets: of the node; 0, -1 for weights and cfg, or "from the preset" leave a setting as it is.
        latent: height and width in pixels of a connected LATENT, which goes before both.
        sigmas: number of sampler steps of connected SIGMAS, which goes before the widget.
        resumed: the Recipe of the run that is gone on with: what the preset said then goes before what it says now.

    Raises:
        RecipeError: the preset does not suit the model at all, or the picture's size does not.
    """
    from ..distillation import preset_for

    chosen = preset_for(architecture) if preset == AUTO else preset_names()[preset]
    recipe = dict(chosen.recipe)
    if resumed is not None:
        recipe = {name: getattr(resumed, name) for name in recipe}
    for name in ("train_steps", "learning_rate", "rank", "lora_alpha", "batch_size"):
        recipe[name] = widgets[name] or recipe[name]
    if widgets["lr_schedule"] != FROM_PRESET:
        recipe["lr_schedule"] = widgets["lr_schedule"]
    targets = widgets.get("lora_targets", FROM_PRESET)
    if targets != FROM_PRESET:
        recipe["lora_targets"] = widgets["target_pattern"] if targets == BY_PATTERN else targets
    weights = {
        p: widgets[w] if widgets[w] >= 0 else recipe["penalties"].get(p, 0.0) for p, w in PENALTY_WIDGETS.items()
    }
    recipe["penalties"] = {name: weight for name, weight in weights.items() if weight}
    recipe["anchors"] = replace(recipe["anchors"], pool=widgets["anchor_pool"] or recipe["anchors"].pool)
    height, width = latent or (widgets["height"] or chosen.height, widgets["width"] or chosen.width)
    plan = Plan(
        chosen,
        recipe,
        height,
        width,
        sigmas or widgets["steps"] or chosen.steps,
        chosen.scheduler if widgets["scheduler"] == FROM_PRESET else widgets["scheduler"],
        chosen.cfg if widgets["cfg"] < 0 else widgets["cfg"],
    )
    return replace(plan, notes=tuple(_notes(plan)))


def _notes(plan: Plan) -> list[str]:
    """Raises RecipeError where training could only fail."""
    from ..distillation import RecipeError

    preset, notes = plan.preset, []
    if preset.most_pixels and plan.height * plan.width > preset.most_pixels:
        raise RecipeError(
            f"{plan.width} × {plan.height} pixels are too many for {preset.name}, which paint {preset.width} × "
            f"{preset.height}. Disconnect the LATENT, or give it that size."
        )
    if preset.distilled and plan.cfg != 1:
        notes.append(f"{preset.name} has its guidance built in: a cfg of {plan.cfg:g} makes other pictures; use 1.")
    if plan.steps < preset.least_steps:
        notes.append(
            f"{preset.name} needs about {preset.steps} sampler steps; with {plan.steps} its pictures stay blurred and "
            "the critic judges those."
        )
    if preset.most_steps and plan.steps > preset.most_steps:
        notes.append(f"{preset.name} paints in {preset.most_steps} sampler steps at most; {plan.steps} gain nothing.")
    return notes
