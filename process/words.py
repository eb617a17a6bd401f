"""Plans, readings and trajectories in words, for people."""

from __future__ import annotations

from collections.abc import Sequence

from .painting import BUDGET, DONE, DRAFT, FAILED, INTERRUPTED, NO_GAIN, RUNNING
from .states import BY_CRITIC, BY_RULES, HELD, LOST, PENDING, UNJUDGED, VIOLATED, Plan, Reading, Trajectory
from .steering import BY_HAND

SIGNS = {HELD: "✓", VIOLATED: "✗", LOST: "✗ lost:", PENDING: "…", UNJUDGED: "?"}
MADE = {BY_CRITIC: "made by the critic", BY_RULES: "made by rules, not by the critic"}
REASONS = {
    DONE: "Everything is as planned.",
    BUDGET: "The budget is used up.",
    NO_GAIN: "The last rounds brought no gain.",
    INTERRUPTED: "Cancelled on the way.",
    FAILED: "Something failed on the way.",
    RUNNING: "Broke off on the way.",
}
NEVER = (
    "The critic held no fact of any picture. If you see that it is wrong, it cannot judge these questions: try it with "
    "Ask VLM Critic, word the facts otherwise, or choose another critic."
)


def plan_in_words(plan: Plan) -> str:
    """Strokes, and what each is to bring about."""
    lines = [f"Plan, {MADE.get(plan.source, 'of your own')}: {plan.description or plan.prompt}"]
    for stroke in (None, *plan.strokes):
        facts = [f for f in plan.facts if f.stroke == (None if stroke is None else stroke.id)]
        if stroke is not None:
            where = "" if stroke.region is None else " in a region of its own"
            lines.append(f"{stroke.id}: {stroke.instruction}{where}")
        lines += [f"   {fact.question} {fact.answer}" for fact in facts]
    return "\n".join(lines)


def readings_in_words(plan: Plan, readings: Sequence[Reading]) -> str:
    """A line for each fact: whether it is held, its question, the wanted answer, and how probable that is."""
    facts = {fact.id: fact for fact in plan.facts}
    return "\n".join(
        f"{SIGNS.get(r.status, '?')} {facts[r.fact].question}   P({facts[r.fact].answer}) = {r.p:.3f}" for r in readings
    )


def trajectory_in_words(trajectory: Trajectory) -> str:
    """Why it ended, what it came to, and the readings of the result."""
    best = trajectory.steps[trajectory.best].reflection
    strokes = [step for step in trajectory.steps if step.stroke != DRAFT]
    back = sum(not step.accepted for step in strokes)
    unjudged = sum(reading.status == UNJUDGED for reading in best.readings)
    facts = f"{len(trajectory.held)} of {len(best.readings) - unjudged} facts held"
    facts += f", {unjudged} that the critic cannot judge" if unjudged else ""
    passes = f"{trajectory.passes} {'pass' if trajectory.passes == 1 else 'passes'} of the painter"
    said = ["The plan was made by rules, not by the critic."] if trajectory.plan.source == BY_RULES else []
    said += [] if _ever_held(trajectory) else [NEVER]
    said += [f"What is wrong: {best.text}"] if best.text else []
    said += [f"What could mend it: {best.instruction}"] if best.instruction else []
    return "\n".join(
        [
            _ending(trajectory),
            f"{facts}.",
            f"{passes}, {back} of {len(strokes)} strokes taken back.",
            readings_in_words(trajectory.plan, best.readings),
            *said,
        ]
    )


def _ending(trajectory: Trajectory) -> str:
    if trajectory.stop_reason == BY_HAND:
        step = trajectory.steps[-1]
        return f"{'Kept' if step.accepted else 'Taken back'}: {step.ins}."
    return REASONS.get(trajectory.stop_reason, trajectory.stop_reason)


def _ever_held(trajectory: Trajectory) -> bool:
    return any(step.reflection.with_status(HELD, UNJUDGED) for step in trajectory.steps)
