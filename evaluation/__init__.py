"""How well a control was learnt."""

from .control import Bound, Control, Pairs, Verdict, evaluate, judge, make_pairs, sample_pairs

__all__ = ["Bound", "Control", "Pairs", "Verdict", "evaluate", "judge", "make_pairs", "sample_pairs"]
