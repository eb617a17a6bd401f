"""Goes on where a run stopped or was killed: what was painted and thought before is given again, pass by pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.errors import ProcessError
from ..core.protocols import ModelInfo
from .protocols import Canvas, Painter, Thinker
from .states import Fact, Plan, Step, Stroke, Trajectory

if TYPE_CHECKING:
    from .painting import Painting


def check_same(
    earlier: Trajectory, wanted: str | Plan, painter: Painter, thinker: Thinker, settings: Mapping[str, Any], seed: int
) -> None:
    """Raises ProcessError where a run cannot go on from an earlier one; only the budget may differ."""
    pairs = {
        "prompt": (earlier.plan.prompt, wanted if isinstance(wanted, str) else wanted.prompt),
        "plan": (earlier.plan, earlier.plan if isinstance(wanted, str) else wanted),
        "seed": (earlier.seed, seed),
        "settings": (_without_budget(earlier.settings), _without_budget(settings)),
        "painter": (earlier.models["painter"], painter.info.to_dict()),
        "thinker": (earlier.models["thinker"], thinker.info.to_dict()),
    }
    for name, (before, now) in pairs.items():
        if before != now:
            raise ProcessError(
                f"The trajectory was made with another {name}: {before!r}, now {now!r}. Give the same, or start anew."
            )


def _without_budget(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "budget"}


class RecordedPainter:
    """Gives the canvases of an earlier run again, then paints."""

    def __init__(self, earlier: Painting, painter: Painter) -> None:
        self.steps, self._canvases, self._painter = earlier.trajectory.steps, earlier.canvases, painter
        self.passes = 0

    @property
    def info(self) -> ModelInfo:
        return self._painter.info

    @property
    def keeps_outside(self) -> bool:
        return self._painter.keeps_outside

    @property
    def last(self) -> Step | None:
        """The step of the last pass, as long as it is one of the earlier run."""
        return self.steps[self.passes - 1] if self.passes <= len(self.steps) else None

    @property
    def next(self) -> Step | None:
        return self.steps[self.passes] if self.passes < len(self.steps) else None

    def draft(self, prompt: str, seed: int) -> Canvas:
        return self._again(prompt, seed) or self._painter.draft(prompt, seed)

    def stroke(self, canvas: Canvas, stroke: Stroke, seed: int) -> Canvas:
        return self._again(stroke.instruction, seed) or self._painter.stroke(canvas, stroke, seed)

    def _again(self, instruction: str, seed: int) -> Canvas | None:
        self.passes += 1
        step = self.last
        if step is None:
            return None
        if (step.ins, step.seed) != (instruction, seed):
            raise ProcessError(
                f"Step {self.passes - 1} of the trajectory was {step.ins!r} with seed {step.seed}, and would be "
                f"{instruction!r} with seed {seed} now: it was edited, or made otherwise. Start anew."
            )
        return self._canvases[step.picture]


class RecordedThinker:
    """Says again what was thought in an earlier run, as long as its painter gives that run's canvases."""

    def __init__(self, earlier: Painting, thinker: Thinker, painter: RecordedPainter) -> None:
        blank = earlier.trajectory.blank
        self._readings = [*([blank] if blank else []), *(step.reflection.readings for step in painter.steps)]
        self._thinker, self._painter = thinker, painter

    @property
    def info(self) -> ModelInfo:
        return self._thinker.info

    @property
    def control(self) -> Fact | None:
        return None if self._readings else self._thinker.control

    def plan(self, prompt: str) -> Plan:
        return self._thinker.plan(prompt)

    def conflict(self, stroke: Stroke, scene: str, prompt: str) -> str:
        step = self._painter.next
        return step.ins if step is not None else self._thinker.conflict(stroke, scene, prompt)

    def read(self, picture: Tensor, facts: Sequence[Fact]) -> list[float]:
        if self._readings:
            return [reading.p for reading in self._readings.pop(0)]
        return self._thinker.read(picture, facts)

    def reflect(self, picture: Tensor, failing: Sequence[Fact], failed: Sequence[str], prompt: str) -> tuple[str, str]:
        step = self._painter.last
        if step is None:
            return self._thinker.reflect(picture, failing, failed, prompt)
        return step.reflection.text, step.reflection.instruction
