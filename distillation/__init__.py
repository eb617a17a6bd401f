"""The engine: recipe, loss, loop, files. It knows no ComfyUI, no diffusers and no transformers."""

from ..core.errors import (
    CriticError,
    DualProcessError,
    EnoughLearned,
    GeneratorError,
    LoraFileError,
    OverlayError,
    RecipeError,
    StopRequested,
)
from ..core.picture import Picture
from ..core.protocols import Critic, Draw, Estimate, Generator, ModelInfo, Overlay, Sampling
from .favourites import LIKENESS, Favourites, Picks
from .loop import distill
from .presets import GENERAL, PRESETS, Preset, keep_questions, preset_for
from .question import Question
from .recipe import Anchors, Recipe
from .result import (
    DistillationDiverged,
    DistillationError,
    DistillationFailed,
    DistillationResult,
    Preview,
    StepReport,
)
from .run import Run
from .slider import SliderLora, read_slider, slider_path
from .targets import Target
from .wordings import guard_questions, overlay_questions

__all__ = [
    "GENERAL",
    "LIKENESS",
    "PRESETS",
    "Anchors",
    "Critic",
    "CriticError",
    "DistillationDiverged",
    "DistillationError",
    "DistillationFailed",
    "DistillationResult",
    "Draw",
    "DualProcessError",
    "EnoughLearned",
    "Estimate",
    "Favourites",
    "Generator",
    "GeneratorError",
    "LoraFileError",
    "ModelInfo",
    "Overlay",
    "OverlayError",
    "Picks",
    "Picture",
    "Preset",
    "Preview",
    "Question",
    "Recipe",
    "RecipeError",
    "Run",
    "Sampling",
    "SliderLora",
    "StepReport",
    "StopRequested",
    "Target",
    "distill",
    "guard_questions",
    "keep_questions",
    "overlay_questions",
    "preset_for",
    "read_slider",
    "slider_path",
]
