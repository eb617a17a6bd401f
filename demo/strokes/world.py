"""The second procedural world: line drawings of up to four objects on a field, with a known line weight and layout.

As in the first world, every parameter that a prompt leaves open is Φ(a fixed linear statistic of the noise):
`16 · mean(noise[:, c])` is exactly N(0, 1) for a 16 × 16 latent, so each (prompt, noise) pair names one scene and the
true counterfactual of every sample is known.

A place is a column (0, 1, 2) and a depth in [0, 1], from far (small, below the horizon) to near (large, at the bottom).
Two objects fit into one column only as far and near; the six places that this gives are the world's slots: 32 × 48
pixels, on the grid of 16 pixels, at least 16 pixels apart.

Colours are sRGB in [0, 1], lengths are pixels of a picture of 128 × 128 unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

IMAGE_SIZE = 128
LATENT_CHANNELS = 16
LATENT_SIZE = 16
MOST_OBJECTS = 4

KINDS = ("house", "tree", "ball")
COLORS = ("yellow", "blue", "green", "white")
TIMES = ("day", "dusk", "night")
COLUMNS = (16.0, 64.0, 112.0)  # x of their middles
LINE_WEIGHTS = (1.0, 5.0)
HORIZONS = (40.0, 56.0)
_FEET = (61.0, 125.0)  # y on which a far and a near object stands
_SCALES = (0.75, 1.0)
OUTER = {"house": (26.0, 36.0), "tree": (26.0, 40.0), "ball": (26.0, 26.0)}  # width and height of a near one

# sRGB, 0-255. Nothing is red or black but overlays and outlines.
SKY = {"day": (185, 218, 244), "dusk": (240, 190, 150), "night": (86, 96, 148)}
GROUND = {"day": (216, 200, 164), "dusk": (168, 138, 140), "night": (104, 110, 128)}
FILL = {"yellow": (242, 200, 50), "blue": (50, 105, 215), "green": (55, 150, 70), "white": (248, 248, 246)}
_TRUNK = (122, 84, 52)
INK = (16, 14, 20)
SHADE = (1.0, 0.92, 0.8)  # brightness of objects by day, at dusk and by night

# Which noise channel drives which parameter.
_CHANNEL = {"line": 0, "depth0": 1, "depth1": 2, "depth2": 3, "horizon": 4, "light": 5, "time": 6}


@dataclass(frozen=True)
class Thing:
    """One object of a prompt. `place` is (column, row), row 0 far and 1 near; None where the prompt leaves it open."""

    kind: str
    color: str
    place: tuple[int, int] | None = None


@dataclass(frozen=True)
class Words:
    """What a prompt says: its objects from left to right where places are open, and the time of day, if it says one."""

    things: tuple[Thing, ...] = ()
    time: str | None = None


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes, each with room for four objects; indices of what is absent are −1."""

    kind: Tensor  # [B, 4], index into KINDS
    color: Tensor  # [B, 4], index into COLORS
    x: Tensor  # [B, 4], middle of the object
    depth: Tensor  # [B, 4] in [0, 1], far to near
    line_weight: Tensor  # [B], thickness of outlines
    horizon: Tensor  # [B]
    light: Tensor  # [B], brightness, about 1
    time: Tensor  # [B], index into TIMES
    tint: Tensor = field(default_factory=lambda: torch.zeros(()))  # [B, 3] or [], added to all colours but the ink

    def __len__(self) -> int:
        return len(self.horizon)

    def select(self, index: Tensor) -> Scenes:
        return Scenes(**{name: value[index] if value.ndim else value for name, value in vars(self).items()})

    def boxes(self) -> Tensor:
        """[B, 4, 4]: left, top, right, bottom of each object, without its outline; NaN where there is none."""
        return object_boxes(self.kind, self.x, self.depth)


def concatenate(scenes: Sequence[Scenes]) -> Scenes:
    """One batch of several; tints are dropped."""
    names = [name for name in vars(scenes[0]) if name != "tint"]
    return Scenes(**{name: torch.cat([getattr(s, name) for s in scenes]) for name in names})


def scale_at(depth: Tensor) -> Tensor:
    return _SCALES[0] + (_SCALES[1] - _SCALES[0]) * depth


def foot_at(depth: Tensor) -> Tensor:
    return _FEET[0] + (_FEET[1] - _FEET[0]) * depth


def depth_of_foot(y: Tensor) -> Tensor:
    return (y - _FEET[0]) / (_FEET[1] - _FEET[0])


def object_boxes(kind: Tensor, x: Tensor, depth: Tensor) -> Tensor:
    """[..., 4]: left, top, right and bottom of objects; NaN where `kind` is −1."""
    sizes = torch.tensor([*OUTER.values(), (torch.nan, torch.nan)])[kind]
    width, height = (sizes * scale_at(depth)[..., None]).unbind(-1)
    foot = foot_at(depth)
    return torch.stack([x - width / 2, foot - height, x + width / 2, foot + 0 * width], dim=-1)


def noise_statistics(noise: Tensor) -> dict[str, Tensor]:
    """Φ(16 · channel mean) of noise [B, 16, 16, 16]: uniform in (0, 1), by parameter name, [B] each."""
    score = noise.float().mean(dim=(2, 3)) * noise.shape[-1]
    return {name: torch.special.ndtr(score[:, channel]) for name, channel in _CHANNEL.items()}


def couple_noise(noise: Tensor, uniforms: dict[str, Tensor]) -> Tensor:
    """Moves the channel means of Gaussian noise [B, 16, 16, 16] so that `noise_statistics` gives `uniforms`.

    For uniform `uniforms` the result is again exactly Gaussian.
    """
    noise = noise.clone()
    for name, value in uniforms.items():
        channel = _CHANNEL[name]
        wanted = torch.special.ndtri(value.clamp(1e-4, 1 - 1e-4)) / noise.shape[-1]
        noise[:, channel] += (wanted - noise[:, channel].mean(dim=(1, 2)))[:, None, None]
    return noise


def random_uniforms(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {name: torch.rand(count, generator=generator) for name in _CHANNEL}


def _layout(things: Sequence[Thing], uniforms: dict[str, float]) -> list[tuple[float, float]]:
    """(x, depth) of each object: where the prompt says, else from left to right, as near as the noise says.

    One object stands in the middle, two at the sides, three in a column each, four at the sides, the first two far.
    """
    if any(t.place for t in things):
        free = [(c, r) for r in (0, 1) for c in range(3) if (c, r) not in {t.place for t in things}]
        places = [t.place or free.pop(0) for t in things]
        return [(COLUMNS[c], float(r)) for c, r in places]
    depths = [uniforms["depth0"], uniforms["depth1"], uniforms["depth2"]]
    if len(things) == 4:
        return [(COLUMNS[0], 0.0), (COLUMNS[2], 0.0), (COLUMNS[0], 1.0), (COLUMNS[2], 1.0)]
    columns = ((), (1,), (0, 2), (0, 1, 2))[len(things)]
    return [(COLUMNS[c], d) for c, d in zip(columns, depths[: len(things)], strict=True)]


def build_scenes(words: Sequence[Words], uniforms: dict[str, Tensor]) -> Scenes:
    """Scenes of B prompts; what they leave open is set by uniforms [B] in (0, 1)."""
    count = len(words)
    kind, color = torch.full((count, MOST_OBJECTS), -1), torch.full((count, MOST_OBJECTS), -1)
    x, depth = torch.zeros(count, MOST_OBJECTS), torch.zeros(count, MOST_OBJECTS)
    drawn = [dict(zip(uniforms, row, strict=True)) for row in torch.stack(list(uniforms.values()), dim=1).tolist()]
    for i, (said, free) in enumerate(zip(words, drawn, strict=True)):
        for j, (thing, place) in enumerate(zip(said.things, _layout(said.things, free), strict=True)):
            kind[i, j], color[i, j] = KINDS.index(thing.kind), COLORS.index(thing.color)
            x[i, j], depth[i, j] = place
    times = [w.time or TIMES[min(2, int(u["time"] * 3))] for w, u in zip(words, drawn, strict=True)]
    return Scenes(
        kind=kind,
        color=color,
        x=x,
        depth=depth,
        line_weight=LINE_WEIGHTS[0] + (LINE_WEIGHTS[1] - LINE_WEIGHTS[0]) * uniforms["line"],
        horizon=HORIZONS[0] + (HORIZONS[1] - HORIZONS[0]) * uniforms["horizon"],
        light=0.94 + 0.12 * uniforms["light"],
        time=torch.tensor([TIMES.index(t) for t in times]),
    )


def with_line_weight(scenes: Scenes, thickness: float) -> Scenes:
    """The same scenes drawn with another line weight."""
    return replace(scenes, line_weight=torch.full_like(scenes.line_weight, thickness))


def without_objects(scenes: Scenes) -> Scenes:
    """The same scenes with nothing standing in them."""
    return replace(scenes, kind=torch.full_like(scenes.kind, -1), color=torch.full_like(scenes.color, -1))


def cover(signed_distance: Tensor) -> Tensor:
    """Antialiased coverage [0, 1] of a shape from its signed distance in pixels (inside negative)."""
    return (0.5 - signed_distance).clamp(0, 1)


def _polygon(px: Tensor, py: Tensor, corners: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Signed distance of a convex polygon given clockwise on the screen (y down), exact inside, a bound outside."""
    sides = []
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2).sqrt()
        sides.append(((px - x1) * (y2 - y1) - (py - y1) * (x2 - x1)) / length)
    return torch.stack(sides).amax(dim=0)


def shapes(kind: str, x: Tensor, y: Tensor, s: Tensor) -> list[tuple[Tensor, float | tuple[int, int, int]]]:
    """Parts of an object, back to front: signed distance at (x, y) from its foot's middle (y up is negative), and its
    fill: a factor on the object's colour, or a colour of its own."""
    if kind == "house":
        body = torch.maximum(x.abs() - 11 * s, (y + 10 * s).abs() - 10 * s)
        roof = _polygon(x, y, [(-13 * s, -19 * s), (0 * s, -36 * s), (13 * s, -19 * s)])
        return [(body, 1.0), (roof, 0.72)]
    if kind == "tree":
        trunk = torch.maximum(x.abs() - 3.5 * s, (y + 10 * s).abs() - 10 * s)
        return [(trunk, _TRUNK), ((x**2 + (y + 27 * s) ** 2).sqrt() - 13 * s, 1.0)]
    return [((x**2 + (y + 13 * s) ** 2).sqrt() - 13 * s, 1.0)]


def srgb(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32) / 255


def render(scenes: Scenes, size: int = IMAGE_SIZE, ink: Sequence[int] = INK) -> Tensor:
    """Pictures [B, 3, size, size] of scenes, sRGB in [0, 1], antialiased; outlines in `ink`, sRGB in 0-255."""
    px = size / IMAGE_SIZE
    grid = (torch.arange(size) + 0.5) / px
    y, x = grid[None, :, None], grid[None, None, :]
    light = scenes.light[:, None, None, None]
    tint = scenes.tint[..., :, None, None] if scenes.tint.ndim else scenes.tint
    sky, ground = (srgb([c[t] for t in TIMES])[scenes.time][:, :, None, None] for c in (SKY, GROUND))
    below = cover((scenes.horizon[:, None, None] - y) * px)[:, None]
    image = (torch.lerp(sky, ground, below) * light + tint).expand(-1, -1, -1, size)

    shade = torch.tensor(SHADE)[scenes.time][:, None, None, None] * light
    outline = srgb([ink])[0][None, :, None, None]
    half = (scenes.line_weight / 2)[:, None, None]
    order = scenes.depth.argsort(dim=1, stable=True)
    for rank in range(MOST_OBJECTS):
        chosen = order[:, rank : rank + 1]
        kind, color, cx, depth = (
            t.gather(1, chosen)[:, 0] for t in (scenes.kind, scenes.color, scenes.x, scenes.depth)
        )
        fill = srgb(list(FILL.values()))[color.clamp(min=0)][:, :, None, None]
        s = scale_at(depth)[:, None, None]
        from_x, from_y = x - cx[:, None, None], y - foot_at(depth)[:, None, None]
        for index, name in enumerate(KINDS):
            here = kind == index
            if not here.any():
                continue
            picture = image[here]
            for distance, paint in shapes(name, from_x[here], from_y[here], s[here]):
                colored = fill[here] * paint if isinstance(paint, float) else srgb([paint])[0][None, :, None, None]
                colored = colored * shade[here] + (tint[here] if tint.ndim else tint)
                picture = torch.lerp(picture, outline, cover((distance - half[here]) * px)[:, None])
                picture = torch.lerp(picture, colored, cover((distance + half[here]) * px)[:, None])
            image = image.index_copy(0, here.nonzero()[:, 0], picture)
    return image.clamp(0, 1)
