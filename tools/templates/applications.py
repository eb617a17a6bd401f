"""What is taught: one definition each, from which the templates for the demo models and for others are made."""

from __future__ import annotations

from dataclasses import replace

from dual_process import overlays
from dual_process.demo import questions
from dual_process.demo.controls import horizon_control, night_control, palette_control
from dual_process.demo.sliders import SETTINGS as SLIDER_SETTINGS
from dual_process.demo.strokes.controls import (
    MOVING_STEPS,
    composition_control,
    depth_control,
    line_weight_control,
)

from .teaching import Application, Case, as_in

LONGER = {"train_steps": MOVING_STEPS}
LANDSCAPES = (
    "a photo of a wide landscape at noon",
    "a painting of a harbour town by the sea",
    "a photo of a desert road at sunset",
    "a photo of a wheat field under clouds",
)
OTHER_LANDSCAPES = ("a photo of a lighthouse on a rocky shore", "a watercolour of a mountain lake")

HORIZON = Application(
    "horizon",
    "a horizon",
    asks="The critic is asked whether a red line lies on the horizon, and the LoRA learns to put it there.",
    change="Drag the line below *Draw* of *Horizon Overlay* and run again.",
    demo=Case(overlays.horizon(0.3), questions.HORIZON, hint="Next: **03_demo_use_a_saved_lora**."),
    downloaded=Case(overlay=overlays.horizon(0.3), prompts=LANDSCAPES, held_out=OTHER_LANDSCAPES),
)
_ENDS = overlays.between(overlays.horizon(0.3), overlays.horizon(0.7))
SLIDER = Application(
    "slider",
    "a slider",
    asks="The red line lies at another height in each batch, and the LoRA learns them all: one training, a slider for "
    "the horizon. Two files are saved.",
    change="Use it as in **25_demo_use_a_slider**. For other ends change *position* of both overlays.",
    demo=Case(_ENDS, questions.HORIZON, settings=SLIDER_SETTINGS),
    downloaded=Case(
        _ENDS,
        prompts=LANDSCAPES,
        held_out=OTHER_LANDSCAPES,
        settings=SLIDER_SETTINGS,
        hint="How many steps a large model wants is not known yet: watch the pictures.",
    ),
)
_PALETTE = palette_control()
PALETTE = Application(
    "palette",
    "a palette",
    asks="The critic is asked whether the picture matches the swatches along its bottom edge, and the LoRA learns to "
    "paint in these colours.",
    change="Change the *colors* and run again.",
    demo=Case(
        overlay=_PALETTE.asked[0].overlay,
        penalties={name: _PALETTE.recipe.penalties[name] for name in ("anchors", "structure")},
        hint="*structure_weight*, an advanced setting, keeps every line in its place. Colours near those of the "
        "prompts are learnt best by the tiny model.",
    ),
    downloaded=Case(
        overlay=overlays.palette(("#1d3557", "#457b9d", "#f1c27d", "#e07a5f")),
        prompts=LANDSCAPES,
        held_out=OTHER_LANDSCAPES,
    ),
)
LINE_WEIGHT = Application(
    "line_weight",
    "a line weight",
    asks="The critic is asked whether the lines of the drawing are as thick as a red bar, and the LoRA learns to draw "
    "such lines.",
    change="Change *thickness* of *Line Weight Overlay* and run again. For thin lines begin the question with "
    "“Ignoring the line color, …”, or they turn red.",
    demo=as_in(line_weight_control()),
    downloaded=Case(
        overlay=overlays.line_weight(0.02),
        prompts=(
            "a minimalist line drawing of a cat",
            "a line drawing of a bicycle",
            "a simple ink drawing of a teapot",
            "a cartoon of a house with a garden",
        ),
        held_out=("a minimalist line drawing of a sailing boat", "a cartoon of a dog"),
    ),
)
RELATIVE_DEPTH = Application(
    "relative_depth",
    "relative depth",
    asks="The critic is asked whether Point B is in the foreground and Point A in the background, and the LoRA learns "
    "to place things so.",
    change="Open *Draw* and drag the points, or swap A and B in the question, and run again.",
    demo=replace(as_in(depth_control()), settings=LONGER),
    downloaded=Case(
        overlay=overlays.depth([(0.3, 0.35), (0.7, 0.75)], order="BA"),
        prompts=(
            "a photo of a red car and a tree in a field",
            "a photo of a horse and a barn",
            "a photo of two people on a beach",
            "a painting of a boat and a lighthouse",
        ),
        held_out=("a photo of a dog and a bench in a park", "a painting of a windmill and a cow"),
    ),
)
COMPOSITION = Application(
    "composition",
    "a composition",
    asks="The critic is asked whether the picture is composed as the red annotations say, and the LoRA learns to put "
    "things there.",
    change="Open *Draw* of *Composition Overlay*, drag the regions and lines and run again.",
    demo=replace(as_in(composition_control()), settings=LONGER),
    downloaded=Case(
        overlay=overlays.composition(
            regions=[(0.05, 0.6, 0.9, 0.35, "this region is a large expanse like a field")],
            lines=[(0.3, 0.12, 0.3, 0.6, "this line represents vertical object like a tree")],
        ),
        prompts=(
            "a landscape painting of a meadow with a tree",
            "an oil painting of the countryside in summer",
            "a watercolour of fields after the rain",
            "an impressionist painting of a village by a field",
        ),
        held_out=("an oil painting of a heath in autumn", "a watercolour of a vineyard"),
    ),
)
COMMONSENSE = Application(
    "commonsense",
    "commonsense",
    asks="The prompts leave something unsaid. The critic is asked whether the picture shows it, with nothing drawn on, "
    "and the LoRA learns to.",
    change="Ask what your own prompts mean but do not say, and run again.",
    demo=as_in(
        night_control(),
        tuple(text.format("night") for text in questions.TIME),
        "Here they are silent about the time of day, which shall be night.",
    ),
    downloaded=Case(
        wordings=(
            "Is the bookshelf empty?",
            "Are there no books on the bookshelf?",
            "Does the image show a bookshelf with nothing on it?",
        ),
        prompts=("A bookshelf just assembled",),
        held_out=("A photo of a bookshelf just assembled",),
        hint="Here a bookshelf that was just assembled shall be empty.",
    ),
)
_HELD_OUT = horizon_control().held_out
NEW_PROMPTS = Application(
    "new_prompts",
    "a horizon for new prompts",
    asks="The LoRA learns from five prompts only. The verdict judges it by the twenty that are held out.",
    change="Write five prompts of your own, and others that are not like them.",
    demo=Case(
        overlays.horizon(0.3),
        questions.HORIZON,
        prompts=(
            "a day sky over the sea",
            "a day sky over the grass with a ball",
            "a sunset sky over the sea with a tree",
            "a sunset sky over the grass with a house",
            "a night sky over the sand with a house",
        ),
        held_out=tuple(prompt for number, prompt in enumerate(_HELD_OUT) if number % 4)[:20],
    ),
    downloaded=Case(
        overlay=overlays.horizon(0.3),
        prompts=(*LANDSCAPES, "a photo of a lighthouse on a rocky shore"),
        held_out=(
            *("a watercolour of a mountain lake", "a photo of a fishing boat on the open sea"),
            *("an oil painting of a stormy ocean", "a photo of sand dunes at dawn"),
            *("a photo of a city skyline across a bay", "a photo of an airport runway in the morning"),
            *("a pencil drawing of a prairie with bison", "a photo of a frozen lake in winter"),
            *("a photo of a tulip field in Holland", "a painting of a caravan in the desert"),
            *("a photo of a beach with palm trees", "an aerial photo of a river delta"),
            *("a photo of a vineyard in autumn", "a film still of a highway in Texas"),
            *("a photo of a salt flat after the rain", "a watercolour of a moor in the fog"),
            *("a photo of a rice terrace under a blue sky", "a photo of a football stadium at night"),
            *("a woodcut of a bridge over a wide river", "a photo of the surface of the moon"),
        ),
    ),
)
