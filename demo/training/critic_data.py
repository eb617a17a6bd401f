"""What the critic learns from: composites with a question and the probability that the answer is Yes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from ... import overlays
from ...evaluation.measures import palette_distance
from ..questions import HORIZON, PALETTE, POSTFIX, THING, TIME
from ..world import GROUNDS, IMAGE_SIZE, OBJECTS, TIMES, Scenes, palette, random_scenes, render

BATCH = 64
LOGIT = 3.5  # the surest label


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 [N, 3, 112, 112], their scenes, and how far each is from day or sunset to night."""

    images: Tensor
    scenes: Scenes
    night: Tensor  # [N] in [0, 1]

    def batch(self, generator: torch.Generator) -> Pool:
        index = torch.randint(len(self.images), (BATCH,), generator=generator)
        return Pool(self.images[index], self.scenes.select(index), self.night[index])


@torch.no_grad()
def make_pool(count: int, vae: AutoencoderTiny, generator: torch.Generator) -> Pool:
    """Scenes with the world's palettes, random ones and blends towards night; two thirds seen through the VAE,
    with some noise in the latents, as generated pictures are."""
    images, scenes, nights = [], [], []
    for part in range(0, count, 64):
        batch = random_scenes(64, generator, free_palette=0.25)
        batch, night = _blend_to_night(batch, generator)
        pictures = render(batch)
        if part // 64 % 3:
            pictures = as_generated(pictures, vae, generator)
        images.append((pictures.float().clamp(0, 1) * 255).round().byte())
        scenes.append(batch)
        nights.append(night)
    merged = {name: torch.cat([getattr(s, name) for s in scenes]) for name in vars(scenes[0])}
    return Pool(torch.cat(images), Scenes(**merged), torch.cat(nights))


@torch.no_grad()
def as_generated(pictures: Tensor, vae: AutoencoderTiny, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 112, 112] in [0, 1] seen through the VAE, with some noise in the latents."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encoder(pictures * 2 - 1).float()
        strength = torch.rand(len(pictures), 1, 1, 1, generator=generator) * 0.35
        decoded = vae.decoder(latents + strength * torch.randn(latents.shape, generator=generator))
    return ((decoded + 1) / 2).float().clamp(0, 1)


def _blend_to_night(scenes: Scenes, generator: torch.Generator) -> tuple[Scenes, Tensor]:
    """Moves a quarter of the scenes part of the way to their night palette."""
    is_night = (scenes.time == TIMES.index("night")).float()
    share = torch.rand(len(scenes), generator=generator)
    chosen = (torch.rand(len(scenes), generator=generator) < 0.25) & (scenes.time >= 0) & (is_night == 0)
    night = torch.stack([palette("night", GROUNDS[g]) for g in scenes.ground.tolist()])
    amount = torch.where(chosen, share, torch.zeros_like(share))
    light = scenes.object_light * (1 - amount * 0.5)
    return (
        replace(scenes, colors=torch.lerp(scenes.colors, night, amount[:, None, None]), object_light=light),
        torch.where(chosen, share, is_night),
    )


@dataclass(frozen=True)
class Lesson:
    """One batch: composites [B, 3, 112, 112], questions, P(Yes) [B], and targets of the throw-away heads."""

    images: Tensor
    questions: list[str]
    yes: Tensor
    heads: dict[str, Tensor]  # class indices [B], −100 where there is none


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little noise, blur, contrast and brightness, each on some of the pictures."""
    count = len(images)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.where(rand(count, 1, 1, 1) < 0.25, blurred, images)
    contrast, shift = 0.85 + 0.3 * rand(count, 1, 1, 1), 0.1 * (rand(count, 3, 1, 1) - 0.5)
    images = torch.where(rand(count, 1, 1, 1) < 0.4, (images - 0.5) * contrast + 0.5 + shift, images)
    return (images + 0.03 * rand(count, 1, 1, 1) * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def add_false_horizons(images: Tensor, generator: torch.Generator) -> Tensor:
    """Faint edges and bands across a third of the pictures: what a generator that wants to please would draw.

    The label still goes by the true horizon, so that a second edge under the red line wins nothing.
    """
    count, height = len(images), images.shape[-2]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    y = (torch.arange(height) + 0.5)[None, None, :, None] / height
    bands = torch.zeros(count, 3, height, 1)
    for _ in range(3):
        edge = 0.05 + 0.9 * rand(count, 1, 1, 1)
        width = 0.004 + 0.03 * rand(count, 1, 1, 1)  # how soft the edge is
        reach = 0.05 + 0.4 * rand(count, 1, 1, 1)  # how far it takes to fade away
        step = torch.sigmoid((y - edge) / width) * torch.exp(-(y - edge).clamp(min=0) / reach)
        bands += step * (rand(count, 3, 1, 1) - 0.5) * 0.35 * rand(count, 1, 1, 1)
    return torch.where(rand(count, 1, 1, 1) < 0.35, images + bands, images).clamp(0, 1)


@dataclass(frozen=True)
class Mixture:
    """The same scene with something changed, which shows through row by row.

    These are the pictures on the way from what is drawn to what is wanted, and the half-solutions in which a
    generator could get stuck: its tokens are 16 rows high.
    """

    changes: dict[str, Tensor]  # fields of one scene
    rows: Tensor  # [112] in [0, 1]: how much of the changed scene is there
    logit: float  # label of the wholly changed scene


def mix(images: Tensor, scenes: Scenes, mixtures: list[Mixture | None]) -> tuple[Tensor, Tensor]:
    """Draws the mixtures into pictures [B, 3, 112, 112]; also how much of each change can be seen, [B] in [0, 1]."""
    covered = torch.zeros(len(images))
    chosen = [i for i, mixture in enumerate(mixtures) if mixture]
    if not chosen:
        return images, covered
    drawn = [m for m in mixtures if m]
    changed = scenes.select(torch.tensor(chosen))
    for index, mixture in enumerate(drawn):
        for name, value in mixture.changes.items():
            getattr(changed, name)[index] = value
    other, rows = render(changed), torch.stack([m.rows for m in drawn])
    difference = (other - images[chosen]).abs().mean(dim=(1, 3))
    covered[chosen] = (difference * rows).sum(dim=1) / difference.sum(dim=1).clamp(min=1e-6)
    images = images.clone()
    images[chosen] = torch.lerp(images[chosen], other, rows[:, None, :, None])
    return images, covered


def _rows(random: np.random.Generator) -> Tensor:
    """How much of a mixture is there, row by row: evenly, in the token rows, or on one side of a soft edge."""
    kind = random.random()
    if kind < 0.35:
        return torch.full((IMAGE_SIZE,), float(random.random()))
    if kind < 0.8:
        amounts = random.random(7) if random.random() < 0.5 else (random.random(7) < random.random()).astype(float)
        return torch.from_numpy(amounts).float().repeat_interleave(IMAGE_SIZE // 7)
    edge, width = random.uniform(0.1, 0.9), random.uniform(0.01, 0.1)
    y = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    return torch.sigmoid((y - edge) / width * float(random.choice([-1, 1])))


def make_lesson(pool: Pool, generator: torch.Generator, hardened: bool = False) -> Lesson:
    """Draws pictures, overlays and questions; `hardened` puts false horizons and mixtures into the pictures."""
    drawn = pool.batch(generator)
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    rows = [_exercise(drawn, i, random, hardened) for i in range(len(drawn.images))]
    images, covered = mix(drawn.images.float() / 255, drawn.scenes, [row.mixture for row in rows])
    if hardened:
        images = add_false_horizons(images, generator)
    images = augment(images, generator)
    composites = torch.cat(
        [
            row.overlay.apply(image[None]) if row.overlay else image[None]
            for row, image in zip(rows, images, strict=True)
        ]
    )
    heads = {name: torch.tensor([row.heads.get(name, -100) for row in rows]) for name in HEADS}
    questions = [worded(row.question, random) for row in rows]
    logits = torch.tensor([row.logit for row in rows]).lerp(
        torch.tensor([row.mixture.logit if row.mixture else 0.0 for row in rows]), covered
    )
    return Lesson(composites, questions, torch.sigmoid(logits), heads)


HEADS = {"horizon": 56, "line": 56, "distance": 61, "ground": 3, "object": 4, "night": 8, "palette": 16}


@dataclass
class _Exercise:
    overlay: overlays.Overlay | None
    question: str
    logit: float
    heads: dict[str, int]
    mixture: Mixture | None = None


def worded(question: str, random: np.random.Generator) -> str:
    question += POSTFIX if random.random() < 0.4 else ""
    return question.lower() if random.random() < 0.1 else question


def _exercise(drawn: Pool, i: int, random: np.random.Generator, hardened: bool) -> _Exercise:
    """One picture's overlay, question, label and head targets."""
    scenes = drawn.scenes
    horizon = float(scenes.horizon[i])
    colors = scenes.colors[i]
    visible = float((colors[1] - colors[2]).norm()) > 0.2
    heads = {"object": int(scenes.object[i])}
    if scenes.time[i] >= 0:
        heads |= {"ground": int(scenes.ground[i]), "night": min(7, int(drawn.night[i] * 8))}
    kind, mixture = random.random(), None
    if hardened and kind < 0.16:
        overlay, more = None, {}
        question, logit, mixture = _night_mixture(scenes.select(torch.tensor([i])), random)
    elif kind < 0.55 and visible:
        overlay, question, logit, more = _horizon_exercise(horizon, random)
        if hardened and random.random() < 0.45:
            mixture = _horizon_mixture(overlay, random)
            more.pop("distance")
    elif kind < 0.85:
        overlay, question, logit, more = _palette_exercise(drawn, i, random)
    else:
        (question, logit), overlay, more = _plain_question(drawn, i, random), None, {}
    if mixture is None:
        if visible:
            heads["horizon"] = int(horizon * 56)
        if overlay is not None and random.random() < 0.12:
            question, logit = _plain_question(drawn, i, random)
    return _Exercise(overlay, question, logit, heads | more, mixture)


_Drawn = tuple[overlays.Overlay | None, str, float, dict[str, int]]


def _horizon_exercise(horizon: float, random: np.random.Generator) -> _Drawn:
    near = random.random()
    if near < 0.25:
        line = horizon + random.normal(0, 0.006)
    elif near < 0.6:
        line = horizon + random.normal(0, 0.06)
    else:
        line = random.uniform(0.1, 0.9)
    line = float(np.clip(line, 0.05, 0.95))
    off = (line - horizon) * IMAGE_SIZE
    heads = {"line": int(line * 56), "distance": int(np.clip(round(off), -30, 30)) + 30}
    overlay = overlays.horizon(line, thickness=float(random.uniform(0.014, 0.032)))
    return overlay, str(random.choice(HORIZON)), _alignment_logit(line - horizon), heads


def _horizon_mixture(overlay: overlays.Overlay, random: np.random.Generator) -> Mixture:
    """A second horizon, most often on the red line."""
    line = overlay.layers[0].position
    near = random.random() < 0.7
    other = float(np.clip(line + random.normal(0, 0.01) if near else random.uniform(0.15, 0.85), 0.1, 0.9))
    return Mixture({"horizon": torch.tensor(other)}, _rows(random), _alignment_logit(line - other))


def _night_mixture(scene: Scenes, random: np.random.Generator) -> tuple[str, float, Mixture]:
    """Night in part, or dark colours that are not the night's."""
    night = palette("night", GROUNDS[int(scene.ground)])
    if random.random() < 0.6:
        colors = night
    else:
        colors = torch.from_numpy(random.random((4, 3)) * random.uniform(0, 0.4)).float()
        colors = colors.lerp(night, float(random.random()) * float(random.random() < 0.5))
    question = str(random.choice(TIME)).format("night")
    return question, _night_logit(scene), Mixture({"colors": colors}, _rows(random), _night_logit(scene, colors))


def _night_logit(scene: Scenes, colors: Tensor | None = None) -> float:
    """By how far the four colours of one scene are from the night's over the same ground."""
    colors = scene.colors[0] if colors is None else colors
    grounds = GROUNDS if int(scene.time) < 0 else (GROUNDS[int(scene.ground)],)
    distance = min(float((colors - palette("night", g)).abs().mean()) for g in grounds)
    return LOGIT * (1 - 2 * min(1.0, max(0.0, distance - 0.05) / 0.25))


def _alignment_logit(off: float) -> float:
    """Falls all the way out, so that there is a gradient far from the goal, and steeply near it."""
    px = abs(off) * IMAGE_SIZE
    return max(LOGIT - 0.8 * min(px, 6.0) - 0.1 * max(px - 6.0, 0.0), -7.0)


def _true_palette(drawn: Pool, i: int) -> tuple[np.ndarray, np.ndarray]:
    """The quarter points of the two gradients and their shares of the picture."""
    colors = drawn.scenes.colors[i].double().numpy()
    points = [colors[a] + (colors[b] - colors[a]) * t for a, b in ((0, 1), (2, 3)) for t in (0.25, 0.75)]
    horizon = float(drawn.scenes.horizon[i])
    return np.clip(points, 0, 1), np.array([horizon, horizon, 1 - horizon, 1 - horizon]) / 2


def _palette_exercise(drawn: Pool, i: int, random: np.random.Generator) -> _Drawn:
    colors, shares = _true_palette(drawn, i)
    other = _true_palette(drawn, int(random.integers(len(drawn.images))))[0]
    if random.random() < 0.3:
        other = random.random((4, 3))
    # 2 swatches: one of the sky, one of the ground; up to 4: both gradients' ends.
    picks = ([0, 2], [1, 3], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3])[int(random.integers(5))]
    share = random.choice([0.0, float(random.random()), 1.0], p=[0.35, 0.35, 0.3])
    swatches = np.clip(
        colors[picks] * (1 - share) + other[picks] * share + random.normal(0, 0.01, (len(picks), 3)), 0, 1
    )
    if random.random() < 0.5:
        random.shuffle(swatches)
    distance = palette_distance(colors, shares, swatches)
    names = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (swatches * 255).round().astype(int)]
    logit = LOGIT - 0.3 * min(max(distance - 3, 0.0), 16.0) - 0.06 * max(distance - 19, 0.0)
    overlay = overlays.palette(names, height=float(random.uniform(0.12, 0.18)))
    return overlay, str(random.choice(PALETTE)), max(logit, -5.0), {"palette": min(15, int(distance / 4))}


def _plain_question(drawn: Pool, i: int, random: np.random.Generator) -> tuple[str, float]:
    scenes = drawn.scenes
    known = int(scenes.time[i]) >= 0
    topic = random.random()
    if known and topic < 0.5:
        wanted = "night" if random.random() < 0.7 else str(random.choice(TIMES[:2]))
        if wanted == "night":
            logit = _night_logit(scenes.select(torch.tensor([i])))
        else:
            logit = LOGIT * (1 - 2 * float(drawn.night[i])) if TIMES[int(scenes.time[i])] == wanted else -LOGIT
        return str(random.choice(TIME)).format(wanted), logit
    if known and topic < 0.75:
        wanted = str(random.choice(GROUNDS))
        name = "the sea" if wanted == "sea" else wanted
        return str(random.choice(THING)).format(name), LOGIT if GROUNDS[int(scenes.ground[i])] == wanted else -LOGIT
    wanted = str(random.choice(OBJECTS[1:]))
    return str(random.choice(THING)).format(f"a {wanted}"), LOGIT if OBJECTS[
        int(scenes.object[i])
    ] == wanted else -LOGIT
