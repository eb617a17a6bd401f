"""Reads pictures of the second world without a critic: what stands where, in which colour, how thick its outlines are.

Objects are what differs from sky and ground; each is compared with drawings of every kind, then its thickness and place
are those of the drawing that comes nearest. Nothing here is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .world import (
    FILL,
    GROUND,
    HORIZONS,
    IMAGE_SIZE,
    INK,
    KINDS,
    LINE_WEIGHTS,
    MOST_OBJECTS,
    SHADE,
    SKY,
    TIMES,
    Scenes,
    cover,
    depth_of_foot,
    foot_at,
    object_boxes,
    scale_at,
    shapes,
    srgb,
)

CROP = 56  # pixels around an object
SMALLEST = 90  # pixels of the smallest object
DIFFERENT = 0.11  # distance in sRGB from everything that sky and ground and the edge between them can be
LIKE_OBJECT = 0.6  # least overlap with the drawing of a kind
NEAR = 14.0  # pixels by which two objects in one place may be apart


@dataclass(frozen=True)
class Reading:
    """What was found in B pictures; [B, 4] or [B], indices and NaN where there is nothing."""

    kind: Tensor  # [B, 4], index into KINDS or −1
    color: Tensor  # [B, 4], index into COLORS or −1
    x: Tensor  # [B, 4], middle in pixels
    depth: Tensor  # [B, 4], far 0 to near 1
    fill: Tensor  # [B, 4, 3], sRGB of what an object is filled with, as by day; NaN where there is none
    line_weights: Tensor  # [B, 4], thickness of each object's outline in pixels, NaN where there is none
    time: Tensor  # [B], index into TIMES
    strays: Tensor  # [B], number of things that are no object of the world

    @property
    def line_weight(self) -> Tensor:
        """Mean thickness of a picture's outlines in pixels, [B]; NaN where nothing stands in it."""
        return self.line_weights.nanmean(dim=1)

    def boxes(self) -> Tensor:
        """[B, 4, 4]: left, top, right, bottom in pixels, NaN where there is no object."""
        return object_boxes(self.kind, self.x, self.depth)


def _background(image: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The time of day whose sky and ground cover most of a picture [H, W, 3], and these colours as they are there."""
    above, under = image[: int(HORIZONS[0])].reshape(-1, 3), image[int(HORIZONS[1]) :].reshape(-1, 3)
    best = (-1.0, 0, np.zeros(3), np.zeros(3))
    for index, time in enumerate(TIMES):
        for light in (0.94, 0.97, 1.0, 1.03, 1.06):
            share, found = 0.0, []
            for part, colors in ((above, SKY), (under, GROUND)):
                color = np.array(colors[time]) / 255 * light
                near = np.abs(part - color).max(axis=-1) < 0.08
                share += float(near.mean())
                found.append(np.median(part[near], axis=0) if near.any() else color)
            if share > best[0]:
                best = (share, index, *found)
    return best[1:]


def _objects(image: np.ndarray, sky: np.ndarray, ground: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Masks [H, W] of what differs from the background, largest first, and how many further ones there are."""
    way = ground - sky
    share = np.clip(((image - sky) @ way) / max(1e-6, float(way @ way)), 0, 1)
    different = np.linalg.norm(image - (sky + share[..., None] * way), axis=-1) > DIFFERENT
    labels, count = ndimage.label(ndimage.binary_opening(ndimage.binary_fill_holes(different)))
    masks = [labels == i + 1 for i in range(count)]
    masks = sorted((m for m in masks if m.sum() >= SMALLEST), key=lambda m: -int(m.sum()))
    return masks[:MOST_OBJECTS], max(0, len(masks) - MOST_OBJECTS)


class _Drawings:
    """Drawings of one kind around N places, on grids of CROP × CROP pixels that lie around `corner` [N, 2]."""

    def __init__(self, corner: Tensor) -> None:
        grid = torch.arange(CROP) + 0.5
        self.x = corner[:, 0, None, None] + grid[None, None, :]
        self.y = corner[:, 1, None, None] + grid[None, :, None]

    def parts(self, kind: str, x: Tensor, foot: Tensor) -> list[tuple[Tensor, float | tuple[int, int, int]]]:
        s = scale_at(depth_of_foot(foot))[:, None, None]
        return shapes(kind, self.x - x[:, None, None], self.y - foot[:, None, None], s)

    def silhouette(self, kind: str, x: Tensor, foot: Tensor, thickness: Tensor) -> Tensor:
        """Whether a pixel is inside the outer edge of the outline, [N, CROP, CROP]."""
        nearest = torch.stack([d for d, _ in self.parts(kind, x, foot)]).amin(dim=0)
        return nearest < thickness[:, None, None] / 2

    def draw(
        self, kind: str, x: Tensor, foot: Tensor, thickness: Tensor, fill: Tensor, shade: Tensor, behind: Tensor
    ) -> Tensor:
        """Pictures [N, 3, CROP, CROP] of objects of a fill [N, 3] before a background of the same shape."""
        image, half = behind, thickness[:, None, None] / 2
        for distance, paint in self.parts(kind, x, foot):
            color = fill * paint if isinstance(paint, float) else srgb([paint])[0] * shade[:, None]
            image = torch.lerp(image, srgb([INK])[0][None, :, None, None], cover(distance - half)[:, None])
            image = torch.lerp(image, color[:, :, None, None], cover(distance + half)[:, None])
        return image


@torch.no_grad()
def read_scenes(images: Tensor) -> Reading:
    """Reads pictures [B, 3, 128, 128], sRGB in [0, 1]."""
    pictures = images.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().double().numpy()
    count = len(pictures)
    time, strays = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    owners, masks, behind, lights = [], [], [], []
    for i, picture in enumerate(pictures):
        time[i], sky, ground = _background(picture)
        found, strays[i] = _objects(picture, sky, ground)
        horizon = np.linalg.norm(picture - sky, axis=-1) > np.linalg.norm(picture - ground, axis=-1)
        row = float(np.median(IMAGE_SIZE - horizon.sum(axis=0)))
        owners += [i] * len(found)
        masks += found
        behind += [(sky, ground, row)] * len(found)
        lights += [float(np.median(sky / (np.array(SKY[TIMES[int(time[i])]]) / 255)))] * len(found)
    result = Reading(
        kind=torch.full((count, MOST_OBJECTS), -1),
        color=torch.full((count, MOST_OBJECTS), -1),
        x=torch.full((count, MOST_OBJECTS), torch.nan),
        depth=torch.full((count, MOST_OBJECTS), torch.nan),
        fill=torch.full((count, MOST_OBJECTS, 3), torch.nan),
        line_weights=torch.full((count, MOST_OBJECTS), torch.nan),
        time=time,
        strays=strays,
    )
    if masks:
        _read_objects(images.float().clamp(0, 1).cpu(), result, owners, masks, behind, lights)
    return result


def _read_objects(
    images: Tensor, result: Reading, owners: list[int], masks: list[np.ndarray], behind: list, lights: list[float]
) -> None:
    """Fills in a reading, object by object."""
    boxes = torch.tensor(np.array([_extent(m) for m in masks]), dtype=torch.float32)  # left, top, right, bottom
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    corner = torch.stack([middle - CROP / 2, (boxes[:, 1] + boxes[:, 3]) / 2 - CROP / 2], dim=1).round()
    drawings = _Drawings(corner)
    seen = torch.cat([_crop(images[i][None], c) for i, c in zip(owners, corner, strict=True)])
    mask = (
        torch.cat([_crop(torch.from_numpy(m).float()[None, None], c) for m, c in zip(masks, corner, strict=True)])[:, 0]
        > 0.5
    )

    middles = torch.tensor((LINE_WEIGHTS[0], sum(LINE_WEIGHTS) / 2, LINE_WEIGHTS[1]))
    likeness = torch.stack(
        [
            torch.stack(
                [
                    _overlap(drawings.silhouette(k, middle, boxes[:, 3] - w / 2, w.expand(len(masks))), mask)
                    for w in middles
                ]
            ).amax(dim=0)
            for k in KINDS
        ]
    )
    best, kinds = likeness.max(dim=0)
    sky, ground = (torch.tensor(np.array([b[i] for b in behind]), dtype=torch.float32) for i in (0, 1))
    row = torch.tensor([b[2] for b in behind])
    below = (drawings.y > row[:, None, None]).float()[:, None]
    background = torch.lerp(sky[:, :, None, None], ground[:, :, None, None], below).expand(-1, -1, -1, CROP)
    shade = torch.tensor(SHADE)[result.time[owners]] * torch.tensor(lights)
    palette = srgb(list(FILL.values()))

    order = sorted(range(len(masks)), key=lambda n: (owners[n], float(middle[n]), float(boxes[n, 3])))
    place = [0] * len(images)
    for n in order:
        owner = owners[n]
        if best[n] < LIKE_OBJECT:
            result.strays[owner] += 1
            continue
        one = _Drawings(corner[n : n + 1])
        kind = KINDS[int(kinds[n])]
        color, x, foot, thickness, fill = _fit(
            one, kind, seen[n], middle[n], boxes[n, 3], palette * shade[n], shade[n : n + 1], background[n : n + 1]
        )
        slot, place[owner] = place[owner], place[owner] + 1
        result.kind[owner, slot], result.color[owner, slot] = int(kinds[n]), color
        result.x[owner, slot], result.depth[owner, slot] = x, float(depth_of_foot(torch.tensor(foot)))
        result.fill[owner, slot] = fill / shade[n]
        result.line_weights[owner, slot] = thickness


def _fit(
    drawings: _Drawings,
    kind: str,
    seen: Tensor,
    middle: Tensor,
    bottom: Tensor,
    fills: Tensor,
    shade: Tensor,
    behind: Tensor,
) -> tuple[int, float, float, float, Tensor]:
    """Of the drawing of a kind that comes nearest to a crop [3, CROP, CROP]: colour, x, foot, thickness, fill."""
    grid = torch.arange(0.5, 7.01, 0.25)

    def error(x: Tensor, foot: Tensor, thickness: Tensor, fill: Tensor) -> Tensor:
        count = len(thickness)
        many = _Drawings.__new__(_Drawings)
        many.x, many.y = drawings.x.expand(count, -1, -1), drawings.y.expand(count, -1, -1)
        image = many.draw(kind, x, foot, thickness, fill, shade.expand(count), behind.expand(count, -1, -1, -1))
        return (image - seen).square().mean(dim=(1, 2, 3))

    main = next(d for d, paint in drawings.parts(kind, middle[None], bottom[None] - 1.5) if paint == 1.0)[0]
    inside = main < max(-4.0, float(main.min()) + 2.5)
    filled = seen[:, inside].median(dim=1).values
    color = int((filled - fills).square().sum(dim=1).argmin())
    fill = fills[color][None]
    x, foot = middle, bottom
    # First the thickness, its outer edge held where it was seen, then the place, then the thickness again.
    thickness = grid[error(x.expand(len(grid)), bottom - grid / 2, grid, fill.expand(len(grid), -1)).argmin()]
    foot = bottom - thickness / 2
    for reach in (1.5, 0.5):
        steps = torch.linspace(-reach, reach, 5)
        xs, feet = (t.reshape(-1) for t in torch.meshgrid(x + steps, foot + steps, indexing="ij"))
        chosen = error(xs, feet, thickness.expand(25), fill.expand(25, -1)).argmin()
        x, foot = xs[chosen], feet[chosen]
        fine = (thickness + torch.linspace(-1, 1, 17) * max(reach, 0.5)).clamp(min=0.25)
        thickness = fine[error(x.expand(17), foot.expand(17), fine, fill.expand(17, -1)).argmin()]
    return color, float(x), float(foot), float(thickness), filled


def _extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _crop(image: Tensor, corner: Tensor) -> Tensor:
    """[1, C, CROP, CROP] from an upper left corner (x, y) that may lie outside."""
    left, top = int(corner[0]) + CROP, int(corner[1]) + CROP
    padded = torch.nn.functional.pad(image, (CROP,) * 4, mode="replicate" if image.shape[1] == 3 else "constant")
    return padded[:, :, top : top + CROP, left : left + CROP]


def _overlap(drawn: Tensor, seen: Tensor) -> Tensor:
    """Intersection over union of masks [N, H, W], [N]."""
    return (drawn & seen).sum(dim=(1, 2)) / (drawn | seen).sum(dim=(1, 2)).clamp(min=1)


def same_scene(reading: Reading, scenes: Scenes) -> Tensor:
    """Whether pictures hold the objects of scenes, each in its colour and near its place, and no others, [B] bool."""
    feet = foot_at(reading.depth)
    result = (reading.strays == 0) & (reading.time == scenes.time)
    result &= (reading.kind >= 0).sum(dim=1) == (scenes.kind >= 0).sum(dim=1)
    for i in range(len(result)):
        for j in (scenes.kind[i] >= 0).nonzero()[:, 0].tolist():
            alike = (reading.kind[i] == scenes.kind[i, j]) & (reading.color[i] == scenes.color[i, j])
            far = torch.hypot(reading.x[i] - scenes.x[i, j], feet[i] - foot_at(scenes.depth[i, j]))
            result[i] &= bool((alike & (far < NEAR)).any())
    return result
