"""The errors that the pack raises. Each message says what was expected, what came and what to do."""

from __future__ import annotations

from typing import Any


class DualProcessError(Exception):
    """Base class of every error that the pack raises on purpose."""

    def __init_subclass__(cls, **settings: Any) -> None:
        """Hosts show an error's full name: without the path of the folder that ComfyUI has loaded the pack from."""
        super().__init_subclass__(**settings)
        cls.__module__ = "dual_process"


DualProcessError.__module__ = "dual_process"


class RecipeError(DualProcessError, ValueError):
    """A recipe or question holds a value that cannot be trained with."""


class CriticError(DualProcessError, ValueError):
    """A critic cannot be loaded, or cannot be asked this."""


class OverlayError(DualProcessError, ValueError):
    """An overlay cannot be built or drawn."""


class GeneratorError(DualProcessError, ValueError):
    """A generator cannot be loaded, or cannot make this."""


class LoraFileError(DualProcessError, ValueError):
    """A LoRA or checkpoint file cannot be read, written, or used with this model."""


class ProcessError(DualProcessError, ValueError):
    """A plan, stroke or trajectory that cannot be followed."""


class StopRequested(Exception):
    """Raised inside a step by a host that stops its models from within; ends the run as `should_stop` would."""


class EnoughLearned(Exception):
    """Raised by an observer of a run that sees no use in going on; ends the run as early stopping does."""
