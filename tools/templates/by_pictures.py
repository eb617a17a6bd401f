"""Templates that teach by pictures rather than words: the style of a reference, and favourites."""

from __future__ import annotations

from dataclasses import replace

from dual_process.demo.controls import HELD_OUT_SILENT, SILENT
from dual_process.demo.questions import STYLE

from .applications import LANDSCAPES, OTHER_LANDSCAPES
from .models import DEMO, FLUX_SCHNELL, Models
from .others import sample
from .parts import SPACE, Columns, Node, Template
from .teaching import CLOSE, NARROW, POSTFIX, distill, own_models, start

COMPARING = replace(
    DEMO,
    loaders={**DEMO.loaders, "critic": Node("DualProcessLoadDemoComparingCritic", width=300)},
    critic="critic.critic",
)
REFERENCE = "a sunset sky over the sea"  # whose picture the demo's reference is
STYLE_SETTINGS = {"anchor_weight": 0.5, "structure_weight": 0.1}  # those of the palette


def prompts(models: Models, width: int, height: int, silent: bool = False) -> Node:
    texts = (LANDSCAPES, OTHER_LANDSCAPES) if models.downloaded else (SILENT, HELD_OUT_SILENT) if silent else None
    widgets = {} if texts is None else {"text": "\n".join(texts[0]), "held_out": "\n".join(texts[1])}
    return Node("DualProcessTrainingPrompts", widgets, {"clip": models.clip}, width, height)


def loaders(models: Models, width: int) -> dict[str, Node]:
    return {key: replace(node, width=width) for key, node in {**models.loaders, **models.critic_loader}.items()}


def reference(models: Models) -> tuple[dict[str, Node], str]:
    """Nodes that give the picture whose style is wanted, and its output."""
    if models.downloaded:
        return {"picture": Node("LoadImage", {"image": "example.png"}, width=NARROW, height=310)}, "picture.IMAGE"
    return {
        "text": Node("CLIPTextEncode", {"text": REFERENCE}, {"clip": models.clip}, NARROW, 90),
        "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 1}, width=NARROW),
        "sample": replace(sample(models.model), width=NARROW),
        "picture": Node("VAEDecode", {}, {"samples": "sample.LATENT", "vae": models.vae}, NARROW),
    }, "picture.IMAGE"


def style_by_reference(models: Models) -> Template:
    shown, output = reference(models)
    columns: Columns = {
        "1  Models and prompts": {**loaders(models, NARROW), "prompts": prompts(models, NARROW, 240)},
        "2  The picture to be like": shown,
        "3  What the critic is asked": {
            "question": Node(
                "DualProcessVLMQuestion",
                {"question": STYLE[0] + POSTFIX * models.downloaded},
                {"references": output},
                NARROW,
                250,
            ),
            "loss": Node(
                "DualProcessVQALoss",
                inputs={"critic": models.critic, "questions.question0": "question.question"},
                height=124,
                width=NARROW,
            ),
        },
        "4  Train and watch": {
            "distill": distill(
                {"model": models.model, "vae": models.vae},
                STYLE_SETTINGS,
                prompts="prompts.prompts",
                loss="loss.loss",
            )
        },
        "5  Save": {
            "save": Node(
                "DualProcessSaveDistilledLoRA", {"name": "dual_process/style"}, {"lora": "distill.lora"}, NARROW
            )
        },
    }
    change = (
        "Load a picture of your own in *Load Image*, and ask for what you want of it: its light, its line, its mood."
        if models.downloaded
        else "Change the prompt of the picture, such as to a night, and run again. The demo's critic knows style as "
        "colours alone."
    )
    note = "\n\n".join(
        (
            "## Teach the style of a picture",
            "The critic sees two pictures, the generated one and your reference, and is asked whether they are in the "
            "same style. The LoRA learns to paint so.",
            start(models),
            change,
            own_models(models),
        )
    )
    lowered = dict.fromkeys(range(1, 4), SPACE)
    return Template(columns, note, note_width=NARROW, lowered=lowered, between=CLOSE)


def pick_favourites(models: Models) -> Template:
    width = 320 if models.downloaded else 300
    columns: Columns = {
        "1  Models and prompts": {
            **loaders(models, width),
            "prompts": prompts(models, width, 300 if not models.downloaded else 220, silent=True),
        },
        "2  Mark, next round, mark …": {
            "favourites": Node(
                "DualProcessPickFavourites",
                {},
                {
                    "model": models.model,
                    "vae": models.vae,
                    "prompts": "prompts.prompts",
                    "critic": models.critic,
                },
                560,
                790,
            )
        },
        "3  Save": {
            "save": Node(
                "DualProcessSaveDistilledLoRA", {"name": "dual_process/favourites"}, {"lora": "favourites.lora"}, 300
            ),
            "liked": Node("PreviewImage", {}, {"images": "favourites.favourites"}, 300, 280, "Favourites so far"),
        },
    }
    tries = (
        "The prompts leave the time of day open: mark nights for some rounds, or low horizons, or warm colours."
        if not models.downloaded
        else "Write prompts that leave open what you want to choose."
    )
    note = "\n\n".join(
        (
            "## Pick favourites",
            "Press **Run**, or *Show pictures*. Click one to three pictures that you like, reject one (✕), press *Next "
            "round*, and go on until you like what you see. Then **Run** saves the LoRA.",
            tries,
            *(() if not models.downloaded else (start(models),)),
            "**Your own model**: exchange the loaders. The critic has to take several pictures at once.",
        )
    )
    return Template(columns, note, note_width=300)


STYLE_BY_REFERENCE = {
    "27_demo_style_by_reference": style_by_reference(COMPARING),
    "28_flux_schnell_style_by_reference": style_by_reference(FLUX_SCHNELL),
}
FAVOURITES = {
    "29_demo_pick_favourites": pick_favourites(COMPARING),
    "30_flux_schnell_pick_favourites": pick_favourites(FLUX_SCHNELL),
}
