"""All controls of the embedded worlds, by name, and the models that each is taught to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..evaluation.control import Control
from . import controls, load, strokes
from .strokes import controls as strokes_controls

if TYPE_CHECKING:
    from ..critics import TransformersCritic
    from ..generators import DiffusersGenerator

Load = Callable[..., "tuple[DiffusersGenerator, TransformersCritic]"]


@dataclass(frozen=True)
class Entry:
    """A control and what it is taught to."""

    make: Callable[..., Control]  # keyword arguments: its own target, `seed`, and fields of the recipe
    load: Load  # prompts, critic_size → generator, critic


CATALOGUE = {
    **{name: Entry(make, load) for name, make in controls.CONTROLS.items()},
    **{name: Entry(make, strokes.load) for name, make in strokes_controls.CONTROLS.items()},
}
