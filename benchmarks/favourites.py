"""What a few marks a round teach: a simulated person with a hidden taste, four rounds of eight pictures.

    python benchmarks/favourites.py --json

Of held-out pictures, before and after each round: the share that is to the person's taste, and what they lost. The
measures are critic-free. `--untrained` takes a critic with the same words that has never had the lesson in comparing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torchvision.utils import save_image

from dual_process import demo
from dual_process.core.protocols import Critic
from dual_process.demo.comparing import load_comparing_critic
from dual_process.demo.controls import KEPT, palette_class
from dual_process.demo.fidelity import true_pictures
from dual_process.demo.tastes import TASTES, Taste, taste_recipe
from dual_process.demo.world import TIMES, Scenes, with_time
from dual_process.distillation.favourites import Favourites
from dual_process.evaluation.control import EVALUATION_SEED, LIKENESS, Pairs, sample_pairs
from dual_process.evaluation.fidelity import Truth, against_truth
from dual_process.evaluation.measures import horizon_position
from dual_process.generators.noise import draw_noise

# A taste may change colours, and no picture is the true one; everything else is to stay.
GUARDS = [guard for guard in KEPT if "color" not in guard.measure and guard.measure != LIKENESS]


def main(
    taste: Annotated[str, typer.Option(help=f"One of {', '.join(TASTES)}, or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Seeds of candidates and training.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    rounds: Annotated[int, typer.Option(help="Rounds of eight pictures.")] = 4,
    round_steps: Annotated[int, typer.Option(help="Training steps after each.")] = 40,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs.")] = 64,
    untrained: Annotated[bool, typer.Option(help="A critic without the lesson in comparing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the candidates and 16 held-out pictures here.")] = None,
) -> None:
    """Runs a session for each taste and seed and prints a row for the state before and after each round."""
    chosen = list(TASTES.values()) if taste == "all" else [TASTES[taste]]
    torch.manual_seed(0)  # of what the lesson has not taught
    critic = load_comparing_critic(trained=not untrained)
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("rounds", total=len(chosen) * seeds * rounds)
        for person in chosen:
            for seed in range(first_seed, first_seed + seeds):
                for row in session(person, critic, seed, rounds, round_steps, pairs, output):
                    rows.append({"taste": person.name, "seed": seed, **row})
                    progress.update(task, advance=min(1, row["round"]))
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def session(
    person: Taste, critic: Critic, seed: int, rounds: int, round_steps: int, count: int, output: Path | None
) -> list[dict[str, Any]]:
    """The measures before the first round and after each."""
    recipe, held_out = taste_recipe(round_steps, seed)
    generator, _ = demo.load([*recipe.prompts, *held_out])
    favourites = Favourites(generator, critic, recipe)
    of = range(len(recipe.prompts), generator.num_prompts)
    indices = tuple(of[number % len(of)] for number in range(count))
    eval_seeds = tuple(EVALUATION_SEED + number for number in range(count))
    prompts = tuple(generator.prompts[index] for index in indices)
    pairs = Pairs(indices, prompts, eval_seeds, draw_noise(eval_seeds, 16, 14, 14))
    before = measured(person, sample_pairs(generator, pairs, lora_scale=0.0), pairs)
    rows = [{"round": 0, "picks": "", **before}]
    for number in range(1, rounds + 1):
        shown = favourites.candidates()
        picks = person.picks(shown)
        favourites.pick(picks)
        images = sample_pairs(generator, pairs, lora_scale=1.0)
        after = measured(person, images, pairs)
        lost = [g.lost for g in GUARDS if not g.holds(before, after)]
        rows.append({"round": number, "picks": picks.line, **after, "lost": lost})
        if output is not None:
            name = f"{person.name}_{seed}_{number}"
            output.mkdir(parents=True, exist_ok=True)
            save_image(torch.cat([shown, images[:16]]), output / f"{name}.png", nrow=8)
    return rows


def measured(person: Taste, images: Tensor, pairs: Pairs) -> dict[str, Any]:
    """The taste, and how whole the pictures are."""
    kept = against_truth(images, as_seen(images, pairs), pairs.prompts)
    return {"to_taste": person.share(images), "score": float(person.score(images).mean()), **kept}


def as_seen(images: Tensor, pairs: Pairs) -> Truth:
    """The pairs' true pictures at the time of day and with the horizon that the pictures show: a taste may change both,
    what stands there is to stay."""
    by_time = [with_time(pairs.prompts, pairs.noise, time) for time in TIMES]
    seen, rows = palette_class(images), torch.arange(len(images))
    chosen = {name: torch.stack([getattr(s, name) for s in by_time])[seen, rows] for name in vars(by_time[0])}
    return true_pictures(Scenes(**{**chosen, "horizon": horizon_position(images)}))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a session: the share of pictures to the person's taste before and after each round."""
    by_session: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_session.setdefault((row["taste"], row["seed"]), []).append(row)
    rounds = max(row["round"] for row in rows)
    lines = [
        "| taste | seed | before | " + " | ".join(f"round {n}" for n in range(1, rounds + 1)) + " | objects | lost |",
        "|---|---|" + "---|" * (rounds + 3),
    ]
    for (taste, seed), own in by_session.items():
        shares = " | ".join(f"{row['to_taste']:.2f}" for row in own)
        last = own[-1]
        lines.append(f"| {taste} | {seed} | {shares} | {last['object_presence']:.2f} | {', '.join(last['lost'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
