"""Writes `workflows/*.json` and `subgraphs/*.json` from definitions, through ComfyUI's own frontend.

    PYTHONPATH=tests:tests/live:tools python -m templates

Needs ComfyUI and Chromium, as the live tests do. Thumbnails are made by `tools/thumbnails.py`.
"""

from __future__ import annotations

from .applications import COMMONSENSE, COMPOSITION, HORIZON, LINE_WEIGHT, NEW_PROMPTS, PALETTE, RELATIVE_DEPTH, SLIDER
from .by_pictures import FAVOURITES, STYLE_BY_REFERENCE
from .by_process import BY_PROCESS
from .models import DEMO, FLUX_2_KLEIN, FLUX_DEV, FLUX_SCHNELL, QWEN_IMAGE, SDXL, STROKES, Z_IMAGE_TURBO
from .others import APP, DISTILL_FROM_ONE_QUESTION, SCORE_PICTURES, TWO_CONTROLS, USE_A_SAVED_LORA, USE_A_SLIDER
from .teaching import template

LESSONS = {
    "01_demo_teach_a_horizon": (HORIZON, DEMO),
    "02_demo_teach_a_palette": (PALETTE, DEMO),
    "05_flux_schnell_teach_a_horizon": (HORIZON, FLUX_SCHNELL),
    "07_flux_dev_teach_a_horizon": (HORIZON, FLUX_DEV),
    "08_flux2_klein_teach_a_horizon": (HORIZON, FLUX_2_KLEIN),
    "09_z_image_turbo_teach_a_horizon": (HORIZON, Z_IMAGE_TURBO),
    "10_qwen_image_teach_a_horizon": (HORIZON, QWEN_IMAGE),
    "11_sdxl_teach_a_horizon": (HORIZON, SDXL),
    "12_flux_schnell_teach_a_palette": (PALETTE, FLUX_SCHNELL),
    "13_demo_teach_a_line_weight": (LINE_WEIGHT, STROKES),
    "14_flux_schnell_teach_a_line_weight": (LINE_WEIGHT, FLUX_SCHNELL),
    "15_demo_teach_relative_depth": (RELATIVE_DEPTH, STROKES),
    "16_flux_schnell_teach_relative_depth": (RELATIVE_DEPTH, FLUX_SCHNELL),
    "17_demo_teach_a_composition": (COMPOSITION, STROKES),
    "18_flux_schnell_teach_a_composition": (COMPOSITION, FLUX_SCHNELL),
    "19_demo_teach_commonsense": (COMMONSENSE, DEMO),
    "20_flux_schnell_teach_commonsense": (COMMONSENSE, FLUX_SCHNELL),
    "21_demo_teach_for_new_prompts": (NEW_PROMPTS, DEMO),
    "22_flux_schnell_teach_for_new_prompts": (NEW_PROMPTS, FLUX_SCHNELL),
    "23_demo_teach_a_slider": (SLIDER, DEMO),
    "24_flux_schnell_teach_a_slider": (SLIDER, FLUX_SCHNELL),
}
TEMPLATES = {
    **{name: template(application, models) for name, (application, models) in LESSONS.items()},
    "03_demo_use_a_saved_lora": USE_A_SAVED_LORA,
    "25_demo_use_a_slider": USE_A_SLIDER,
    "26_demo_two_controls": TWO_CONTROLS,
    **STYLE_BY_REFERENCE,
    **FAVOURITES,
    **BY_PROCESS,
    "04_demo_score_pictures": SCORE_PICTURES,
    "06_demo_teach_a_horizon.app": APP,
}
SUBGRAPHS = {"Distill from one question": DISTILL_FROM_ONE_QUESTION}
