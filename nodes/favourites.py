"""Teaching by pointing: rounds of pictures to mark, each of which trains on towards the favourites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from .memory import BLOCKS
from .plan import AUTO, preset_names
from .refusals import refused
from .rounds import Session
from .teaching import Sources
from .training import AUTO as AUTO_MEMORY
from .training import BOTH, TURNS
from .types import CATEGORY, Critic, Prompts, PromptSet, VqaTerms, outside_inference_mode, to_comfy

ROUND_STEPS, MOST_CANDIDATES = 40, 32
SESSION = "dual_process_favourites"  # what the browser gets, and the node's property that names the session


class PickFavourites(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..distillation.favourites import LIKENESS, SHOWN

        return io.Schema(
            node_id="DualProcessPickFavourites",
            display_name="Pick Favourites",
            category=CATEGORY,
            description="Teaches what is hard to put into words. Run shows pictures of held-out prompts: mark some as "
            "favourites, reject some, and run again. The critic compares new pictures with the marked ones, a LoRA is "
            "trained on towards the favourites, and the next pictures appear. Every round can be taken back.",
            search_aliases=["like", "preference", "rank", "rlhf", "human feedback"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to teach, with any LoRAs already applied to it."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                Prompts.Input(
                    "prompts",
                    tooltip="What to train on, and held-out prompts, of which the pictures are made, from Training "
                    "Prompts. Without any, the pictures are of the training prompts.",
                ),
                Critic.Input(
                    "critic",
                    tooltip="What compares the pictures. It must take several pictures at once, and have learnt to "
                    "compare them: ask it with Ask VLM Critic first.",
                ),
                io.String.Input(
                    "picks",
                    multiline=True,
                    default="",
                    advanced=True,
                    tooltip="The marks, a line a round, by the pictures' places counted from 1, with a minus where one "
                    "is rejected, such as 1 4 -6. A click on a picture writes them. Changing a line goes back to that "
                    "round.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *preset_names()],
                    default=AUTO,
                    tooltip="Where settings come from that are not set below. auto: what suits the MODEL.",
                ),
                io.Int.Input(
                    "round_steps",
                    default=ROUND_STEPS,
                    min=0,
                    max=100_000,
                    tooltip="How often the LoRA is improved after each round. 0: as often as the preset says for a "
                    "whole training.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="How far each step goes. 0: half of what the preset says for a whole training (2.5e-5, "
                    "or 2.5e-4 for the demo models), since rounds add up.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,  # what a browser holds exactly
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the pictures and of the training. Another seed begins other rounds.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="An empty latent, for another size of the pictures than the preset's.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative prompt; needed only where cfg is not 1."
                ),
                io.Int.Input(
                    "candidates",
                    default=SHOWN,
                    min=2,
                    max=MOST_CANDIDATES,
                    advanced=True,
                    tooltip="Pictures a round.",
                ),
                io.String.Input(
                    "comparison",
                    multiline=True,
                    default=LIKENESS.text,
                    advanced=True,
                    tooltip="What the critic is asked about a new picture and a marked one. The answer is a number "
                    "from 1 (as for a rejected picture) to 5 (as for a favourite).",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=512,
                    advanced=True,
                    tooltip="Size of the LoRA. 0: from the preset (16).",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO_MEMORY, BOTH, TURNS, BLOCKS],
                    default=AUTO_MEMORY,
                    advanced=True,
                    tooltip="Whether the model and the critic are on the device together, take turns there, or pass "
                    "through it block by block. auto: the fastest that fits.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="The LoRA after the last round, to Save Distilled LoRA or Load LoRA Model. Before the "
                    "first round is over, nodes behind it wait.",
                ),
                io.Image.Output(display_name="candidates", tooltip="This round's pictures, by their numbers."),
                io.Image.Output(
                    display_name="favourites",
                    tooltip="The favourites of all rounds. Before the first round is over, nodes behind it wait.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, picks: str | None = None, candidates: int | None = None) -> bool | str:
        """What comes by a wire is not known yet (None)."""
        from ..distillation import DualProcessError

        if picks is None or candidates is None:
            return True
        try:
            read_picks(picks, candidates)
        except DualProcessError as error:
            return refused(cls, str(error))
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        prompts: PromptSet,
        critic: Any,
        picks: str,
        preset: str,
        comparison: str,
        candidates: int,
        latent: dict[str, Any] | None = None,
        negative: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..distillation.favourites import LIKENESS

        loss = VqaTerms(((critic, (replace(LIKENESS, text=comparison),)),))
        sources = Sources(model, vae, prompts, loss, latent, negative, None, None, None)
        with outside_inference_mode(grad=True):
            session = Session(sources, preset, {**widgets, "candidates": candidates}, cls.hidden)
            shown = session.go_on(read_picks(picks, candidates))
            lora, liked = session.lora(), session.liked()
        return io.NodeOutput(
            ExecutionBlocker(None) if lora is None else lora,
            to_comfy(shown),
            to_comfy(torch.stack(liked)) if liked else ExecutionBlocker(None),
            ui={SESSION: [session.state()]},
        )


def read_picks(text: str, candidates: int) -> list[Any]:
    """The marks of each round.

    Raises:
        RecipeError: a line that says nothing, or cannot be read; the message says which.
    """
    from ..distillation import RecipeError
    from ..distillation.favourites import Picks

    found = []
    for number, line in enumerate(text.strip().splitlines(), start=1):
        try:
            found.append(Picks.parse(line))
            found[-1].check(candidates)
        except RecipeError as error:
            raise RecipeError(f"Round {number}: {error}") from error
    return found


NODES = [PickFavourites]
