"""Process-driven generation: a picture made along plan, draft, inspect and refine, by any painter and any critic.

This is the process of "Think in Strokes, Not Pixels" (arXiv 2604.04746) with separate models, not its weights.
"""

from .inspecting import Ledger, gain, inspect
from .painting import Painting, ProcessFailed, Settings, paint
from .protocols import Canvas, Painter, Thinker
from .replies import plan_from_reply
from .states import Fact, Plan, Reading, Reflection, Region, Step, Stroke, Trajectory, plan_from_dict, read_plan
from .steering import next_stroke, steer
from .supervision import failure_lesson, result_lesson, step_lesson
from .thinking import CriticThinker, plan_by_rules

__all__ = [
    "Canvas",
    "CriticThinker",
    "Fact",
    "Ledger",
    "Painter",
    "Painting",
    "Plan",
    "ProcessFailed",
    "Reading",
    "Reflection",
    "Region",
    "Settings",
    "Step",
    "Stroke",
    "Thinker",
    "Trajectory",
    "failure_lesson",
    "gain",
    "inspect",
    "next_stroke",
    "paint",
    "plan_by_rules",
    "plan_from_dict",
    "plan_from_reply",
    "read_plan",
    "result_lesson",
    "steer",
    "step_lesson",
]
