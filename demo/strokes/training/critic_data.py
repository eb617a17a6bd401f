"""What the second world's critic learns from: composites with a question and P(Yes), or with a text to write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...training.critic_data import augment
from ..captions import PLACES
from ..questions import POSTFIX
from ..world import COLORS, IMAGE_SIZE, INK, KINDS, Scenes, concatenate, render
from .exercises import Row, Stretched, exercise, select_one, text_exercise, things_of
from .pictures import Pool
from .words import numpy_generator

YES_NO, TEXTS = 52, 12  # rows of a batch
MIXED = 0.3
SPOILT = 2.0  # half of another kind is as good as all of it
HEADS = {
    **{f"kind{c}{r}": 4 for c, r in PLACES},
    **{f"color{c}{r}": 5 for c, r in PLACES},
    "time": 3,
    "line": 18,
    "bar": 24,
    "point_a": 3,
    "point_b": 3,
    "depth_a": 10,
    "depth_b": 10,
    "gap": 21,
    "layout": 20,
}
_NONE = -100


@dataclass(frozen=True)
class Lesson:
    """Composites [B, 3, 128, 128], what is asked, and the answers: P(Yes) of the first rows, texts of the others."""

    images: Tensor
    questions: list[str]
    yes: Tensor  # [YES_NO]
    texts: list[str]  # [TEXTS]
    heads: dict[str, Tensor]  # class indices [B], −100 where there is none


def _amounts(random: np.random.Generator) -> Tensor:
    """How much of a mixture is there, [128, 128]: evenly, token by token, or on one side of a soft edge."""
    kind = random.random()
    if kind < 0.5:
        return torch.full((IMAGE_SIZE, IMAGE_SIZE), float(random.random()))
    if kind < 0.75:
        tokens = torch.from_numpy(random.random((8, 8)) < random.random()).float()
        return tokens.repeat_interleave(16, 0).repeat_interleave(16, 1)
    edge, width = random.uniform(0.1, 0.9), random.uniform(0.01, 0.1)
    ramp = torch.sigmoid(((torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - edge) / width * float(random.choice([-1, 1])))
    return (ramp[:, None] if random.random() < 0.5 else ramp[None, :]).expand(IMAGE_SIZE, IMAGE_SIZE)


def _change_pictures(images: Tensor, drawn: Pool, rows: list[Row], random: np.random.Generator) -> Tensor:
    """Draws mixtures, inks and painted instructions into pictures; `covered` of a mixture goes into its row's label."""
    images = images.clone()
    mixed = [
        i
        for i, row in enumerate(rows)
        if row.other is not None and (row.amounts is not None or random.random() < MIXED)
    ]
    if mixed:
        second = render(concatenate([rows[i].other for i in mixed]))  # type: ignore[misc]
        first = render(drawn.scenes.select(torch.tensor(mixed)))
        amounts = torch.stack([_amounts(random) if (a := rows[i].amounts) is None else a for i in mixed])[:, None]
        covered = (second - first).abs().mul(amounts).sum(dim=(1, 2, 3)) / (second - first).abs().sum(
            dim=(1, 2, 3)
        ).clamp(min=1e-6)
        images[mixed] = images[mixed] + amounts * (second - first)
        for i, share in zip(mixed, covered.tolist(), strict=True):
            if rows[i].amounts is not None:
                share = min(1.0, SPOILT * share)
            rows[i].logit = rows[i].logit * (1 - share) + rows[i].other_logit * share
            overlaid = {"bar", "point_a", "point_b"}  # what the mixture leaves as it was
            rows[i].heads = {k: v for k, v in (rows[i].heads or {}).items() if k in overlaid}
            rows[i].text = "mixed"
    for i, row in enumerate(rows):
        if row.smeared:
            images[i] += render(concatenate(row.smeared)).mean(dim=0) - render(select_one(drawn.scenes, i))[0]
        if row.stretched is not None:
            thing = render(select_one(drawn.scenes, i)) - render(row.stretched.rest)
            images[i] += (stretch(thing, row.stretched) - thing)[0]
        if row.ink not in (None, INK):
            one = select_one(drawn.scenes, i)
            share = float(random.uniform(0.5, 1))
            images[i] += (share * (render(one, ink=row.ink) - render(one)))[0]  # type: ignore[arg-type]
        if row.painted is not None:
            images[i] = torch.lerp(images[i], row.painted.apply(images[i][None])[0], float(random.uniform(0.6, 1)))
    return images.clamp(0, 1)


def stretch(thing: Tensor, how: Stretched) -> Tensor:
    """What an object adds to a picture, [1, 3, 128, 128], stretched about the middle of its foot."""
    middle_x, middle_y = (2 * at / IMAGE_SIZE - 1 for at in (how.x, how.foot))
    theta = torch.tensor(
        [
            [1 / how.width, 0, middle_x * (1 - 1 / how.width)],
            [0, 1 / how.height, middle_y * (1 - 1 / how.height)],
        ]
    )
    grid = F.affine_grid(theta[None], list(thing.shape), align_corners=False)
    return F.grid_sample(thing, grid, align_corners=False)


def _scene_heads(scenes: Scenes, i: int) -> dict[str, int]:
    heads = {name: 0 for name in HEADS if name.startswith(("kind", "color"))}
    for thing, _, _ in things_of(scenes, i):
        column, row = thing.place  # type: ignore[misc]
        heads[f"kind{column}{row}"] = 1 + KINDS.index(thing.kind)
        heads[f"color{column}{row}"] = 1 + COLORS.index(thing.color)
    heads["time"] = int(scenes.time[i])
    if (scenes.kind[i] >= 0).any():
        heads["line"] = min(17, int((float(scenes.line_weight[i]) - 0.75) * 4))
    return heads


def make_lesson(pool: Pool, generator: torch.Generator, hardened: bool = False) -> Lesson:
    """Draws pictures, overlays and questions; `hardened` ones ask about spoilt objects, too."""
    drawn = pool.batch(YES_NO + TEXTS, generator)
    random = numpy_generator(generator)
    rows = [exercise(drawn, i, random, hardened) for i in range(YES_NO)]
    rows += [text_exercise(drawn, i, random) for i in range(YES_NO, YES_NO + TEXTS)]
    images = augment(_change_pictures(drawn.images.float() / 255, drawn, rows, random), generator)
    composites = torch.cat(
        [r.overlay.apply(p[None]) if r.overlay else p[None] for r, p in zip(rows, images, strict=True)]
    )
    known = [
        {
            **({} if row.text == "mixed" or row.smeared or row.stretched else _scene_heads(drawn.scenes, i)),
            **(row.heads or {}),
        }
        for i, row in enumerate(rows)
    ]
    asked = [r.question + (POSTFIX if i < YES_NO and random.random() < 0.4 else "") for i, r in enumerate(rows)]
    return Lesson(
        composites,
        asked,
        torch.sigmoid(torch.tensor([r.logit for r in rows[:YES_NO]])),
        [r.text for r in rows[YES_NO:]],
        {name: torch.tensor([k.get(name, _NONE) for k in known]) for name in HEADS},
    )
