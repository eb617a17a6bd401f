"""Stage 5: the second world's critic learns from exported trajectories to inspect, to plan and to see conflicts.

An adapter for its language tower. Its vision tower stays as it is: what it sees of each picture is computed once, and
the lessons are about that. Facts that it got wrong on the way are asked more often, and what it knew before is asked
again: what it says of overlays is to stay as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from ....critics.loading import load_model
from ....critics.patches import multiply_patches
from ....process.files import load_painting
from ....process.inspecting import HOLDS
from ...training.common import Checkpoint, Run, cosine, set_learning_rate
from ...training.comparing import TOWER, Language, see
from ...training.critic_data import LOGIT
from ..captions import COUNTS, PLACES, caption, parse_prompt, thing_name
from ..compositions import things_there
from ..models import build_processor
from ..process import ask_next, is_true, placed, planned
from ..questions import COUNT, FITS, PLAN, RELATIONS, THING, TIME
from ..reader import read_scenes
from ..world import COLORS, IMAGE_SIZE, KINDS, TIMES, Thing, Words
from .critic_data import YES_NO, make_lesson
from .exercises import next_step
from .pictures import make_pool
from .trajectories import DrawPrompt, paint_trajectories, training_prompts
from .words import numpy_generator, random_thing

STEPS, TRAJECTORIES = 850, 600
POOL, LESSONS = 256, 60  # pictures and batches of the old lessons
FURTHER = 10  # facts that are asked of each picture beside its plan's
FACTS, NEXTS, PLANS, CONFLICTS, OLD, OLD_TEXTS = 40, 10, 10, 32, 28, 6  # of each a step
HARD = 0.35  # share of the facts that the critic had wrong
PARTLY = 0.15  # share of prompts of which only some places are said
OVERLAID = ("line weight", "Point", "red")  # what questions about overlays speak of
RANK, LEARNING_RATE = 8, 4e-3

Found = tuple[Thing, float, float]  # a thing that is there, its x in pixels and its depth


class Exported:
    """Pictures on the way as the vision tower sees them, what is true of them, and what comes next.

    Attributes:
        tokens: [N, 16, width].
        facts: number of the picture, question, and whether Yes is right; `wrong` are the numbers of those on which the
            critic was not right before.
        nexts: number of the picture, question, and the very next step.
    """

    def __init__(self, folders: Sequence[Path], language: Language, random: np.random.Generator) -> None:
        self.facts: list[tuple[int, str, bool]] = []
        self.wrong: list[int] = []
        self.nexts: list[tuple[int, str, str]] = []
        seen, asked = [], list[int]()
        for folder in folders:
            painting = load_painting(folder)
            plan, steps = painting.trajectory.plan, painting.trajectory.steps
            for step in steps:
                picture = painting.canvases[step.picture].picture
                reading = read_scenes(picture)
                there, time = things_there(reading, 0), TIMES[int(reading.time[0])]
                for fact, read in zip(plan.facts, step.reflection.readings, strict=True):
                    is_right = (read.p >= HOLDS) == (is_true(fact.question, there, time) == (fact.answer == "Yes"))
                    if not is_right:
                        self.wrong.append(len(self.facts))
                    self.facts.append((len(seen), fact.question, is_true(fact.question, there, time)))
                for question in (further_question(there, random) for _ in range(FURTHER)):
                    asked.append(len(self.facts))
                    self.facts.append((len(seen), question, is_true(question, there, time)))
                words = parse_prompt(plan.prompt)
                for goal in (words, another_goal(there, random)):
                    self.nexts.append((len(seen), ask_next(goal), next_step(by_place(there), planned(goal))))
                seen.append(picture)
        pictures = torch.cat(seen)
        self.tokens = torch.cat([see(language.model, language.processor, some) for some in pictures.split(64)])
        yes = probabilities(language, self.tokens, [self.facts[i][:2] for i in asked])
        self.wrong += [i for i, p in zip(asked, yes.tolist(), strict=True) if (p >= HOLDS) != self.facts[i][2]]


def by_place(there: Sequence[Found]) -> list[Thing]:
    return sorted((thing for thing, *_ in there), key=lambda thing: PLACES.index(thing.place))  # type: ignore[arg-type]


@torch.no_grad()
def probabilities(language: Language, tokens: Tensor, asked: Sequence[tuple[int, str]]) -> Tensor:
    """P(Yes) [N] among Yes and No of the critic without its adapter: numbers of pictures, and questions."""
    answers, found = language.tokenizer.convert_tokens_to_ids(["Yes", "No"]), []
    with language.model.disable_adapter():
        for start in range(0, len(asked), 256):
            part = asked[start : start + 256]
            shown = tokens[[picture for picture, _ in part]][:, None]
            replied = language.reply(shown, [question for _, question in part], ["Yes"] * len(part))
            found.append(replied[:, 0, answers].softmax(dim=-1)[:, 0])
    return torch.cat(found)


def further_question(there: Sequence[Found], random: np.random.Generator) -> str:
    """About what is there or something like it, by choice at another place; about numbers, order, the time of day."""
    topic = random.random()
    things = [thing for thing, *_ in there]
    if topic < 0.08:
        return TIME[0].format(TIMES[random.integers(3)])
    if topic < 0.25:
        count = int(random.integers(2, 5))
        return COUNT[0].format(f"{COUNTS[count]} {KINDS[random.integers(3)]}s")
    if topic < 0.37 and len(things) > 1:
        pair = [things[i] for i in random.permutation(len(things))[:2]]
        relation = list(RELATIONS.values())[random.integers(3)]
        return relation.format(*(thing_name(replace(thing, place=None), "the", colored=True) for thing in pair))
    thing = things[random.integers(len(things))] if things and random.random() < 0.85 else random_thing(random)
    change = random.random()
    if change < 0.4 or thing.place is None:  # a twin of it
        thing = replace(thing, place=PLACES[random.integers(6)])
    elif change < 0.55:
        thing = replace(thing, color=COLORS[random.integers(4)])
    elif change < 0.65:
        thing = replace(thing, kind=KINDS[random.integers(3)])
    elif change < 0.75:
        return THING[0].format(f"a {thing.kind}")
    if random.random() < 0.15:
        thing = replace(thing, place=None)
    return THING[0].format(thing_name(thing, colored=True))


def another_goal(there: Sequence[Found], random: np.random.Generator) -> Words:
    """What is there, but for one or two changes."""
    goal = {thing.place: thing for thing in by_place(there)}
    for _ in range(int(random.integers(1, 3))):
        place = PLACES[random.integers(6)]
        if place in goal and random.random() < 0.5:
            del goal[place]
        elif place in goal or len(goal) < 4:
            goal[place] = replace(random_thing(random), place=place)
    return Words(tuple(goal.values()))


class Old:
    """Lessons that the critic had before, as it sees them."""

    def __init__(self, run: Run, language: Language, vae: AutoencoderTiny) -> None:
        generator = run.generator("process-old")
        pool = make_pool(run.steps(POOL), vae, generator, halved=False)
        lessons = [make_lesson(pool, generator, hardened=True) for _ in range(run.steps(LESSONS))]
        tokens = [see(language.model, language.processor, lesson.images) for lesson in lessons]
        self.tokens = torch.cat([t[:YES_NO] for t in tokens])
        self.shown = torch.cat([t[YES_NO:] for t in tokens])
        self.questions = [question for lesson in lessons for question in lesson.questions[:YES_NO]]
        self.asked = [question for lesson in lessons for question in lesson.questions[YES_NO:]]
        self.texts = [text for lesson in lessons for text in lesson.texts]
        true = torch.cat([lesson.yes for lesson in lessons])
        said = probabilities(language, self.tokens, list(enumerate(self.questions)))
        kept = torch.tensor([any(word in question for word in OVERLAID) for question in self.questions])
        self.yes = torch.where(kept, said, true)


def lesson_prompt(draw: DrawPrompt, random: np.random.Generator) -> str:
    """A prompt; of some only part of the places are said."""
    prompt = draw(random)
    words = parse_prompt(prompt)
    if random.random() < PARTLY and all(thing.place for thing in words.things):
        things = [replace(t, place=None) if random.random() < 0.5 else t for t in words.things]
        return caption(replace(words, things=tuple(things)))
    return prompt


def described(prompt: str) -> str:
    """The plan of a prompt in words: everything at a place of its own."""
    return caption(placed(parse_prompt(prompt)))


def drawn_step(prompt: str, random: np.random.Generator) -> tuple[str, bool]:
    """An instruction to add something, and whether it fits the plan of a prompt: half of them do."""
    wanted = planned(parse_prompt(prompt))
    fits = bool(wanted) and random.random() < 0.5
    thing = wanted[random.integers(len(wanted))] if wanted else replace(random_thing(random), place=PLACES[0])
    while not fits and thing in wanted:
        match int(random.integers(3)):
            case 0:
                thing = replace(thing, color=COLORS[random.integers(4)])
            case 1:
                thing = replace(thing, kind=KINDS[random.integers(3)])
            case _:
                thing = replace(thing, place=PLACES[random.integers(6)])
    name = thing_name(thing, colored=True if random.random() < 0.3 else None)
    return f"add {name}", fits


def train_process(run: Run, weights: Path, vae: AutoencoderTiny) -> PeftModel:
    """Trains the critic's adapter, or goes on where an earlier run stopped.

    Args:
        weights: folder of the trained `pipeline/` and `critic/`.
    """
    torch.manual_seed(run.seed)
    processor = build_processor()
    base = load_model(weights / "critic", torch.device("cpu"), torch.float32, None)
    multiply_patches(base)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TOWER))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = Checkpoint(run.folder / "process.safetensors", {"adapter": model}, [optimizer])
    start, end = checkpoint.load(), run.steps(STEPS)
    if start >= end:
        return model.eval()
    folders = paint_trajectories(run, weights, run.folder / "trajectories", run.steps(TRAJECTORIES))
    language = Language(model, processor)
    exported = Exported(folders, language, numpy_generator(run.generator("process-facts")))
    run.log("process", pictures=len(exported.tokens), facts=len(exported.facts), wrong=len(exported.wrong))
    lessons = Lessons(language, exported, Old(run, language, vae))
    for step in range(start, end):
        set_learning_rate(optimizer, cosine(step, end))
        optimizer.zero_grad()
        loss, report = lessons.loss(numpy_generator(run.generator("process", step)))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            run.log("process", step=step + 1, **report)
        if (step + 1) % 100 == 0 or step + 1 == end:
            checkpoint.save(step + 1)
    return model.eval()


class Lessons:
    """Batches of all that is to be learnt."""

    def __init__(self, language: Language, exported: Exported, old: Old) -> None:
        self.language, self.exported, self.old, self.draw = language, exported, old, training_prompts()
        grey = torch.full((1, 3, IMAGE_SIZE, IMAGE_SIZE), 0.5)  # what is planned has no picture yet
        # As many to which Yes is right as No: else the critic, which errs by a Yes, would only learn to say No.
        self.facts = [
            (
                [i for i, (*_, yes) in enumerate(exported.facts) if yes == answer],
                [i for i in exported.wrong if exported.facts[i][2] == answer],
            )
            for answer in (True, False)
        ]
        self.nothing = see(language.model, language.processor, grey)[None]

    def loss(self, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The sum of the lessons' losses, and each of them to report; errors of P(Yes) for what Yes or No answers."""
        exported, old = self.exported, self.old
        chosen = [i for of_answer in self.facts for i in _drawn(*of_answer, random)]
        facts = [exported.facts[i] for i in chosen]
        true = torch.tensor([is_yes for *_, is_yes in facts])
        seen = exported.tokens[[picture for picture, *_ in facts]]
        fact_loss, fact_error = self._yes_no(seen, [question for _, question, _ in facts], label(true))

        nexts = [exported.nexts[i] for i in random.integers(len(exported.nexts), size=NEXTS)]
        seen = exported.tokens[[picture for picture, *_ in nexts]][:, None]
        next_loss = self.language.written(seen, [n[1] for n in nexts], [n[2] for n in nexts])

        prompts = [lesson_prompt(self.draw, random) for _ in range(PLANS)]
        wanted = [described(prompt) for prompt in prompts]
        plan_loss = self.language.written(
            self.nothing.expand(PLANS, -1, -1, -1), [PLAN.format(prompt) for prompt in prompts], wanted
        )

        asked = [lesson_prompt(self.draw, random) for _ in range(CONFLICTS)]
        conflicts = [(prompt, *drawn_step(prompt, random)) for prompt in asked]
        fit_loss, fit_error = self._yes_no(
            self.nothing[0].expand(CONFLICTS, -1, -1),
            [FITS.format(instruction, described(prompt)) for prompt, instruction, _ in conflicts],
            label(torch.tensor([fits for *_, fits in conflicts])),
        )

        again = random.integers(len(old.questions), size=OLD)
        old_loss, old_error = self._yes_no(old.tokens[again], [old.questions[i] for i in again], old.yes[again])
        again = random.integers(len(old.texts), size=OLD_TEXTS)
        text_loss = self.language.written(
            old.shown[again][:, None], [old.asked[i] for i in again], [old.texts[i] for i in again]
        )
        said_no = [error for error, is_yes in zip(fact_error.tolist(), true.tolist(), strict=True) if is_yes]
        report = {"facts": fact_error, "true": torch.tensor(said_no), "conflict": fit_error, "old": old_error}
        said = {"next": next_loss, "plan": plan_loss, "old_text": text_loss}
        return fact_loss + fit_loss + old_loss + sum(said.values()), {
            **{name: float(error.mean()) for name, error in report.items() if len(error)},
            **{name: float(loss.detach()) for name, loss in said.items()},
        }

    def _yes_no(self, tokens: Tensor, questions: list[str], yes: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.stack([yes, 1 - yes], dim=1)
        loss, log_probs = self.language.loss(tokens[:, None], questions, ["Yes", "No"], shares)
        return loss, (log_probs[:, 0].exp() - yes).abs()


def _drawn(every: Sequence[int], wrong: Sequence[int], random: np.random.Generator) -> list[int]:
    """Half of a batch's facts, of one answer: some of those that the critic had wrong, the rest any."""
    hard = round(HARD * FACTS / 2) if wrong else 0
    chosen = [wrong[i] for i in random.integers(max(1, len(wrong)), size=hard)]
    return chosen + [every[i] for i in random.integers(len(every), size=FACTS // 2 - hard)]


def label(true: Tensor) -> Tensor:
    """P(Yes) of what is true and what is not: sure, but not more so than in the lessons before."""
    return torch.sigmoid(LOGIT * (2 * true.float() - 1))
