"""How well a control was learnt, and whether the pictures survived it."""

from .control import Bound, Control, Guard, Pairs, Verdict, evaluate, judge, make_pairs, sample_pairs
from .fidelity import Truth

__all__ = [
    "Bound",
    "Control",
    "Guard",
    "Pairs",
    "Truth",
    "Verdict",
    "evaluate",
    "judge",
    "make_pairs",
    "sample_pairs",
]
