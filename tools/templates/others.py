"""Templates that teach nothing, the app, and the blueprint."""

from __future__ import annotations

from collections.abc import Mapping

from .applications import HORIZON
from .drawn import FOLDED
from .models import DEMO
from .parts import SPACE, App, Blueprint, Columns, Node, Template
from .teaching import columns, distill

SAMPLER = {
    "steps": 1,
    "cfg": 1,
    "sampler_name": "euler",
    "scheduler": "simple",
    "control_after_generate": "fixed",
}
SHIPPED = "dual_process_demo"  # the folder of LoRAs that ship with the pack


def sample(model: str, seed: int = 7) -> Node:
    """A sampler of `text` with a model, "key.output"."""
    text = {"positive": "text.CONDITIONING", "negative": "text.CONDITIONING"}
    return Node("KSampler", {"seed": seed, **SAMPLER}, {"model": model, **text, "latent_image": "latent.LATENT"}, 300)


def lora(name: str, model: str) -> Node:
    """One that ships with the pack, at strength 1."""
    return Node("LoraLoaderModelOnly", {"lora_name": f"{SHIPPED}/{name}.safetensors"}, {"model": model}, 300)


USE_A_SAVED_LORA = Template(
    columns={
        "1  Model, LoRA and prompt": {
            **DEMO.loaders,
            "lora": Node(
                "LoraLoader",
                {"lora_name": f"{SHIPPED}/horizon_at_0.30.safetensors"},
                {"model": "demo.model", "clip": "demo.clip"},
                300,
            ),
            "text": Node(
                "CLIPTextEncode",
                {"text": "a sunset sky over the grass with a house"},
                {"clip": "lora.CLIP"},
                300,
                100,
            ),
            "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 4}, width=300),
        },
        "2  Without and with the LoRA": {
            "without": sample("demo.model"),
            "with": sample("lora.MODEL"),
        },
        "3  Decode and draw the line": {
            "decode_without": Node("VAEDecode", {}, {"samples": "without.LATENT", "vae": "demo.vae"}, 260),
            "decode_with": Node("VAEDecode", {}, {"samples": "with.LATENT", "vae": "demo.vae"}, 260),
            "overlay": Node("DualProcessHorizonOverlay", {"position": 0.3}, width=260, properties=FOLDED),
            "line_without": Node(
                "DualProcessApplyOverlay", {}, {"image": "decode_without.IMAGE", "overlay": "overlay.overlay"}, 260
            ),
            "line_with": Node(
                "DualProcessApplyOverlay", {}, {"image": "decode_with.IMAGE", "overlay": "overlay.overlay"}, 260
            ),
        },
        "4  Look": {
            "shown_without": Node("PreviewImage", {}, {"images": "line_without.image"}, 280, 260, "Without the LoRA"),
            "shown_with": Node("PreviewImage", {}, {"images": "line_with.image"}, 280, 260, "With the LoRA"),
        },
    },
    note="## Use a LoRA\n\nPress **Run**. The LoRA in *Load LoRA* ships with the pack and puts the "
    "horizon on the line that is drawn. Choose your own after running **01_demo_teach_a_horizon** "
    "(press R to refresh the list).",
    note_width=280,
)


def text_to_image(loras: Mapping[str, Node], model: str, text: str) -> Columns:
    """A plain graph of the demo model with nodes that load LoRAs, behind which the model is "key.output"."""
    return {
        "1  Model, LoRA and prompt": {
            **DEMO.loaders,
            **loras,
            "text": Node("CLIPTextEncode", {"text": text}, {"clip": "demo.clip"}, 300, 100),
            "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 4}, width=300),
        },
        "2  Pictures": {
            "sample": sample(model),
            "decode": Node("VAEDecode", {}, {"samples": "sample.LATENT", "vae": "demo.vae"}, 300),
        },
        "3  Look": {"shown": Node("PreviewImage", {}, {"images": "decode.IMAGE"}, 300, 320)},
    }


SLIDER = Node(
    "DualProcessSlider",
    {"lora_name": f"{SHIPPED}/horizon_slider.safetensors", "value": -0.5},
    {"model": "demo.model"},
    300,
    240,  # with what the value is
)
USE_A_SLIDER = Template(
    text_to_image({"slider": SLIDER}, "slider.model", "a sunset sky over the grass with a house"),
    note="## Use a slider\n\nPress **Run**, drag *value* of *Slider* and run again: the node says what it is, such as "
    "“horizon at 40 %”. This slider ships with the pack. Choose your own after running "
    "**23_demo_teach_a_slider** (press R to refresh the list).",
    note_width=280,
)
TWO_CONTROLS = Template(
    text_to_image(
        {"horizon": lora("horizon_at_0.30", "demo.model"), "night": lora("night", "horizon.MODEL")},
        "night.MODEL",
        "the grass under a sky with a house",
    ),
    note="## Two controls at once\n\nPress **Run**. One LoRA puts the horizon at 30 %, the other makes it night, which "
    "the prompt does not say. Both were trained alone and ship with the pack. Bypass either to see the other.\n\n"
    "**Controls that disturb each other**, such as a horizon and a palette: connect the first LoRA's MODEL to "
    "*Distill LoRA* when you train the second.",
    note_width=280,
)
SCORE_PICTURES = Template(
    columns={
        "1  Model and prompt": {
            **DEMO.loaders,
            "text": Node("CLIPTextEncode", {"text": "a night sky over the sea"}, {"clip": "demo.clip"}, 300, 100),
            "latent": Node("EmptyLatentImage", {"width": 112, "height": 112, "batch_size": 3}, width=300),
        },
        "2  Pictures": {
            "sample": sample("demo.model", 3),
            "decode": Node("VAEDecode", {}, {"samples": "sample.LATENT", "vae": "demo.vae"}, 300),
        },
        "3  Questions": {
            "overlay": Node("DualProcessHorizonOverlay", {"position": 0.5}, width=300, properties=FOLDED),
            "line": Node(
                "DualProcessVLMQuestion", {"question": HORIZON.demo.texts[0]}, {"overlay": "overlay.overlay"}, 300
            ),
            "night": Node("DualProcessVLMQuestion", {"question": "Is it night?"}, width=300),
        },
        "4  What the critic says": {
            "ask": Node(
                "DualProcessAskVLMCritic",
                {},
                {
                    "critic": "demo.critic",
                    "image": "decode.IMAGE",
                    "questions.question0": "line.question",
                    "questions.question1": "night.question",
                },
                460,
                400,
            ),
            "answers": Node("PreviewAny", {}, {"source": "ask.answers"}, 320, 320, "Answers"),
        },
    },
    note="## Score pictures\n\nPress **Run**. Try questions here before you train on them: if P(answer) "
    "cannot tell a good picture from a bad one, training will not either.\n\nPut *Load Image* in the "
    "place of the sampler for your own pictures, and *Load VLM Critic* in that of the demo critic.",
    note_below=0,
    lowered={1: SPACE, 2: SPACE},
)
_COLUMNS = columns(HORIZON, DEMO)
APP = Template(
    columns={
        **_COLUMNS,
        "4  Save": {
            **_COLUMNS["4  Save"],
            "picture": Node(
                "SaveImage", {"filename_prefix": "dual_process/horizon"}, {"images": "distill.comparison"}, 300, 320
            ),
        },
    },
    note="## An app\n\n**01_demo_teach_a_horizon** in app mode, which shows only the question, the line's "
    "*position*, the training and the pictures before and after. *Enter app mode* in the menu of the "
    "workflow's tab goes back there.",
    note_below=0,
    app=App(["question.question", "overlay.position", "distill.view"], ["picture"]),
)
DISTILL_FROM_ONE_QUESTION = Blueprint(
    columns=[
        {
            "question": Node("DualProcessVLMQuestion", {"question": "Is it night?"}, width=300),
            "loss": Node(
                "DualProcessVQALoss", inputs={"questions.question0": "question.question"}, height=124, width=300
            ),
        },
        {"distill": distill({"loss": "loss.loss"})},
    ],
    inputs=["distill.model", "distill.vae", "distill.prompts", "loss.critic", "question.overlay"],
    widgets=["question.question", "question.answer", "distill.preset", "distill.train_steps"],
    outputs=["distill.lora", "distill.comparison"],
    description="Trains a LoRA until the critic gives the wanted answer to one question about the model's "
    "pictures: VLM Question, VQA Loss and Distill LoRA in one node. Open it to watch the training.",
    aliases=["dual process", "distill lora", "train lora", "vlm question"],
)
