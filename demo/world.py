"""The procedural world that the demo models live in: landscapes with a known horizon, light and palette.

Every scene parameter is Φ(a fixed linear statistic of the noise): `14 · mean(noise[:, c])` is exactly N(0, 1)
for a 14 × 14 latent, so each (prompt, noise) pair names one scene. A rectified flow trained on those pairs makes
the scene in one step, the noise stays exactly Gaussian, and the true counterfactual of every sample is known.

Colours are sRGB in [0, 1], lengths are fractions of the image height unless a name ends in `_px`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IMAGE_SIZE = 112
LATENT_CHANNELS = 16
LATENT_SIZE = 14

TIMES = ("day", "sunset", "night")
GROUNDS = ("sea", "sand", "grass")
OBJECTS = ("none", "house", "tree", "ball")
HORIZON_RANGE = (0.2, 0.8)

# sRGB, 0-255. No palette holds a red: red is kept for the overlays.
_SKY = {  # top of the image, at the horizon
    "day": ((70, 140, 225), (185, 220, 245)),
    "sunset": ((95, 60, 130), (250, 165, 90)),
    "night": ((8, 10, 35), (60, 75, 140)),
}
_GROUND = {  # at the horizon, bottom of the image
    ("day", "sea"): ((35, 95, 150), (15, 60, 110)),
    ("day", "sand"): ((235, 205, 145), (205, 165, 105)),
    ("day", "grass"): ((95, 165, 70), (50, 115, 45)),
    ("sunset", "sea"): ((115, 75, 110), (60, 40, 80)),
    ("sunset", "sand"): ((150, 95, 75), (105, 65, 60)),
    ("sunset", "grass"): ((95, 90, 50), (55, 55, 35)),
    ("night", "sea"): ((8, 22, 40), (4, 10, 22)),
    ("night", "sand"): ((75, 62, 48), (48, 40, 32)),
    ("night", "grass"): ((18, 45, 28), (10, 28, 18)),
}
_OBJECT = {  # fill, second fill (roof, trunk); by day
    "house": ((225, 215, 200), (120, 75, 55)),
    "tree": ((40, 110, 55), (100, 70, 45)),
    "ball": ((240, 205, 70), (240, 205, 70)),
}
_OBJECT_PLACE = {"none": (0.5, 0.25), "house": (0.3, 0.3), "tree": (0.7, 0.26), "ball": (0.5, 0.24)}  # x, width
_OBJECT_LIGHT = {"day": 1.0, "sunset": 0.72, "night": 0.42}
_OUTLINE = (20, 18, 24)
_WARM = (0.09, 0.015, -0.09)  # direction of the tint, sRGB

# Which noise channel drives which parameter.
_CHANNEL = {"horizon": 0, "tint": 1, "light": 2, "time": 3}


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes. Floats are [B]; `colors` is [B, 4, 3]: sky top, sky at the horizon, ground there, bottom."""

    horizon: Tensor  # height of the horizon, fraction from the top
    object_x: Tensor  # centre of the object, fraction of the width
    object_size: Tensor  # width of the object, fraction of the height
    colors: Tensor
    object_light: Tensor  # brightness of the object in [0, 1]
    time: Tensor  # index into TIMES, -1 for a free palette
    ground: Tensor  # index into GROUNDS
    object: Tensor  # index into OBJECTS
    outline_px: Tensor  # width of outlines at a height of 112 px

    def __len__(self) -> int:
        return len(self.horizon)

    def select(self, index: Tensor) -> Scenes:
        return Scenes(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Words:
    """What a prompt says: each is a name, or None where the prompt is silent."""

    time: str | None
    ground: str
    object: str


def parse_prompt(prompt: str) -> Words:
    """Reads a caption; words that the world does not know are passed over, a missing ground means the sea."""
    words = re.findall(r"[a-z]+", prompt.lower())

    def find(names: Sequence[str]) -> str | None:
        return next((w for w in words if w in names), None)

    return Words(find(TIMES), find(GROUNDS) or "sea", find(OBJECTS[1:]) or "none")


def caption(words: Words, template: int = 0) -> str:
    """One of two phrasings of a scene, for example "a sunset sky over the sea with a house"."""
    time = f"{words.time} " if words.time else ""
    scene = (f"a {time}sky over the {words.ground}", f"the {words.ground} under a {time}sky")[template]
    return scene if words.object == "none" else f"{scene} with a {words.object}"


def noise_statistics(noise: Tensor) -> dict[str, Tensor]:
    """Φ(14 · channel mean) of noise [B, 16, 14, 14]: uniform in (0, 1), by parameter name, [B] each."""
    score = noise.float().mean(dim=(2, 3)) * noise.shape[-1]
    return {name: torch.special.ndtr(score[:, channel]) for name, channel in _CHANNEL.items()}


def couple_noise(noise: Tensor, uniforms: dict[str, Tensor]) -> Tensor:
    """Moves the channel means of Gaussian noise [B, 16, 14, 14] so that `noise_statistics` gives `uniforms`.

    For uniform `uniforms` the result is again exactly Gaussian.
    """
    noise = noise.clone()
    for name, value in uniforms.items():
        channel = _CHANNEL[name]
        wanted = torch.special.ndtri(value.clamp(1e-4, 1 - 1e-4)) / noise.shape[-1]
        noise[:, channel] += (wanted - noise[:, channel].mean(dim=(1, 2)))[:, None, None]
    return noise


def _srgb(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32) / 255


def palette(time: str, ground: str) -> Tensor:
    """[4, 3] sRGB in [0, 1]: sky top, sky at the horizon, ground at the horizon, ground at the bottom."""
    return _srgb([*_SKY[time], *_GROUND[time, ground]])


def build_scenes(words: Sequence[Words], uniforms: dict[str, Tensor]) -> Scenes:
    """Scenes of B prompts, their free parameters set by uniforms [B] in (0, 1); a silent time is drawn from "time"."""
    drawn = (uniforms["time"] * len(TIMES)).long().clamp(max=len(TIMES) - 1).tolist()
    times = [w.time or TIMES[i] for w, i in zip(words, drawn, strict=True)]
    colors = torch.stack([palette(t, w.ground) for t, w in zip(times, words, strict=True)])
    low, high = HORIZON_RANGE
    light = 0.92 + 0.16 * uniforms["light"]
    place = torch.tensor([_OBJECT_PLACE[w.object] for w in words])
    tint = (2 * uniforms["tint"] - 1)[:, None] * torch.tensor(_WARM)
    return Scenes(
        horizon=low + (high - low) * uniforms["horizon"],
        object_x=place[:, 0],
        object_size=place[:, 1],
        colors=(colors * light[:, None, None] + tint[:, None]).clamp(0, 1),
        object_light=torch.tensor([_OBJECT_LIGHT[t] for t in times]) * light,
        time=torch.tensor([TIMES.index(t) for t in times]),
        ground=torch.tensor([GROUNDS.index(w.ground) for w in words]),
        object=torch.tensor([OBJECTS.index(w.object) for w in words]),
        outline_px=torch.full((len(words),), 1.6),
    )


def scenes_from_noise(prompts: Sequence[str], noise: Tensor) -> Scenes:
    """The scene that each (prompt, noise [B, 16, 14, 14]) pair names."""
    return build_scenes([parse_prompt(p) for p in prompts], noise_statistics(noise))


def with_horizon(scenes: Scenes, horizon: float) -> Scenes:
    """The same scenes with their horizon at a height: the counterfactual of a perfect horizon control."""
    return replace(scenes, horizon=torch.full_like(scenes.horizon, horizon))


def without_objects(scenes: Scenes) -> Scenes:
    """The same scenes with nothing standing in them."""
    return replace(scenes, object=torch.full_like(scenes.object, OBJECTS.index("none")))


def with_time(prompts: Sequence[str], noise: Tensor, time: str) -> Scenes:
    """The same scenes at another time of day."""
    return build_scenes([replace(parse_prompt(p), time=time) for p in prompts], noise_statistics(noise))


def random_uniforms(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.rand(count, generator=generator) for name in _CHANNEL}


def random_words(count: int, generator: torch.Generator, silent_time: float = 0.25) -> list[Words]:
    """Prompts of the world: any ground and object, the time of day unsaid in `silent_time` of them."""
    rand = torch.rand(count, 4, generator=generator).tolist()
    return [
        Words(
            None if s < silent_time else TIMES[int(t * 3)],
            GROUNDS[int(g * 3)],
            OBJECTS[max(0, int(o * 5) - 1)],
        )
        for s, t, g, o in rand
    ]


def random_scenes(count: int, generator: torch.Generator, free_palette: float = 0.0) -> Scenes:
    """Scenes with any words and parameters; `free_palette` of them take random colours instead of the world's own."""
    scenes = build_scenes(random_words(count, generator), random_uniforms(count, generator))
    free = torch.rand(count, generator=generator) < free_palette
    base = torch.rand(count, 4, 3, generator=generator)
    base[:, 1] = base[:, 0].lerp(base[:, 1], 0.5)  # the two ends of a gradient are kin
    base[:, 3] = base[:, 2].lerp(base[:, 3], 0.5)
    return replace(
        scenes,
        colors=torch.where(free[:, None, None], base, scenes.colors),
        time=torch.where(free, torch.full_like(scenes.time, -1), scenes.time),
    )


def _cover(signed_distance_px: Tensor) -> Tensor:
    """Antialiased coverage [0, 1] of a shape from its signed distance (inside negative)."""
    return (0.5 - signed_distance_px).clamp(0, 1)


def _box(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, half_w: Tensor, half_h: Tensor) -> Tensor:
    return torch.maximum((x - cx).abs() - half_w, (y - cy).abs() - half_h)


def render(scenes: Scenes, size: int = IMAGE_SIZE) -> Tensor:
    """Pictures [B, 3, size, size] of scenes, sRGB in [0, 1], antialiased."""
    px = size / IMAGE_SIZE
    grid = torch.arange(size) + 0.5
    y, x = grid[None, :, None], grid[None, None, :]
    horizon = (scenes.horizon * size)[:, None, None]

    def column(values: Tensor) -> Tensor:
        return values[:, None, None]

    sky = (y / horizon).clamp(0, 1)[:, None]
    ground = ((y - horizon) / (size - horizon)).clamp(0, 1)[:, None]
    c = scenes.colors[:, :, :, None, None]
    above = torch.lerp(c[:, 0], c[:, 1], sky)
    below = torch.lerp(c[:, 2], c[:, 3], ground)
    image = torch.lerp(above, below, _cover(horizon - y)[:, None]).expand(-1, -1, -1, size)

    width = column(scenes.object_size * size)
    cx = column(scenes.object_x * size)
    base = horizon + 0.3 * (size - horizon)  # where the object stands
    shapes = {
        "house": (
            _box(x, y, cx, base - width * 0.35, width * 0.5, width * 0.35),
            torch.maximum(
                (x - cx).abs() * 0.7 - (y - (base - width * 1.15)) * 0.9,
                y - (base - width * 0.68),
            ),
        ),
        "tree": (
            ((x - cx) ** 2 + (y - (base - width * 0.95)) ** 2).sqrt() - width * 0.5,
            _box(x, y, cx, base - width * 0.25, width * 0.1, width * 0.27),
        ),
        "ball": (((x - cx) ** 2 + (y - (base - width * 0.4)) ** 2).sqrt() - width * 0.4,) * 2,
    }
    outline = column(scenes.outline_px * px)
    light = scenes.object_light[:, None, None, None]
    for index, name in enumerate(OBJECTS):
        if name == "none":
            continue
        here = (scenes.object == index).float()[:, None, None, None]
        fills = _srgb(_OBJECT[name])
        for distance, fill in reversed(list(zip(shapes[name], fills, strict=True))):
            ink = _srgb([_OUTLINE])[0][None, :, None, None] * light
            paint = fill[None, :, None, None] * light
            image = torch.lerp(image, ink, here * _cover(distance - outline / 2)[:, None])
            image = torch.lerp(image, paint, here * _cover(distance + outline / 2)[:, None])
    return image.clamp(0, 1)
