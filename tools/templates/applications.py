"""What is taught: one definition each, from which the templates for the demo models and for others are made."""

from __future__ import annotations

from .parts import Node
from .teaching import Application, Case

_LANDSCAPES = {
    "text": "a photo of a wide landscape at noon\na painting of a harbour town by the sea\n"
    "a photo of a desert road at sunset\na photo of a wheat field under clouds",
    "held_out": "a photo of a lighthouse on a rocky shore\na watercolour of a mountain lake",
}


_HORIZON = "Is the overlaid red line aligned with the horizon of the scene?"
_PALETTE = "Does the color palette overlaid at the bottom match the image?"
_LINE = Node("DualProcessHorizonOverlay", {"position": 0.3})
_STRIP = Node("DualProcessPaletteOverlay", {"colors": ["#6a4a82", "#e89a5c", "#7a5068", "#4a3250"]})

HORIZON = Application(
    "horizon",
    "A horizon",
    demo=Case(_HORIZON, _LINE),
    downloaded=Case(_HORIZON, _LINE, _LANDSCAPES),
    note="## Teach a horizon\n\nPress **Run**: nothing has to be downloaded. In a few minutes on a CPU "
    "the tiny demo model learns to put the horizon on the red line.\n\n- *Horizon Overlay* draws the "
    "line. Move *position* and run again.\n- *Stop and keep* ends the training early.\n\nNext: "
    "**03_demo_use_a_saved_lora**.",
)
PALETTE = Application(
    "palette",
    "A palette",
    demo=Case(_PALETTE, _STRIP, settings={"anchor_weight": 0.5, "structure_weight": 0.1}),  # as the demo's own control
    downloaded=Case(_PALETTE, _STRIP, _LANDSCAPES),
    note="## Teach a palette\n\nPress **Run**: nothing has to be downloaded. The critic is asked whether "
    "the picture matches the swatches along its bottom edge, and the LoRA learns to paint in these "
    "colours. *structure_weight*, an advanced setting, keeps every line in its place.\n\nChange the "
    "*colors* and run again. Colours near those of the prompts are learnt best by the tiny model.",
)
