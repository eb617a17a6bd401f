"""The controls of the second demo world: line weight, relative depth, composition.

Whether they were learnt, and whether the pictures still show what their prompts say, is read by `reader.read_scenes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from ... import overlays
from ...distillation import PRESETS, Question, Recipe, guard_questions, overlay_questions
from ...distillation.question import KEEP
from ...evaluation.control import LIKENESS, Bound, Control, Guard, Pairs
from ...evaluation.fidelity import Truth
from ...evaluation.measures import color_difference, psnr
from . import PRESET, questions
from .captions import caption, parse_prompt, thing_name
from .reader import Reading, read_scenes
from .world import (
    COLORS,
    FILL,
    IMAGE_SIZE,
    KINDS,
    LATENT_CHANNELS,
    LATENT_SIZE,
    TIMES,
    Scenes,
    Thing,
    Words,
    build_scenes,
    noise_statistics,
    object_boxes,
    render,
    srgb,
    with_line_weight,
    without_objects,
)

NOISE_SHAPE = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
BAR = 8 / IMAGE_SIZE  # y of the bar that shows the line weight: in the sky, above all objects
DEFAULT_THICKNESS = 4.0
MOVING_STEPS = 350  # of controls that move things: after 200 some are still on their way
CLEARLY_NEARER = 0.05
RED = 0.25  # by which a pixel's red is above its green and blue; nothing in this world is red
Places = tuple[tuple[float, float], tuple[float, float]]  # (column x in pixels, depth) of the left and right object
DEFAULT_PLACES: Places = ((16.0, 0.15), (112.0, 0.85))

_COLORED = [Thing(kind, color) for kind in KINDS for color in COLORS]


def _pairs_of(offset: int, step: int) -> list[tuple[Thing, Thing]]:
    """Twelve pairs, every thing once at the left and once at the right."""
    return [(thing, _COLORED[(i * step + offset) % 12]) for i, thing in enumerate(_COLORED)]


def _prompts(pairs: Sequence[tuple[Thing, Thing]], first: int) -> list[str]:
    times = (None, *TIMES)
    return [caption(Words(pair, times[(i + first) % 4])) for i, pair in enumerate(pairs)]


_TWO = _prompts(_pairs_of(5, 7), 0)
_HELD_OUT_TWO = _prompts(_pairs_of(2, 5), 1)

KEPT = (
    Guard("as_prompted", "what the prompt says", drop=0.1, name="share of pictures with the prompt's objects"),
    Guard("drawing_psnr", "clean drawings", least=20.0, name="PSNR in dB to a drawing of what can be read"),
    Guard("color_error", "the objects' colours", most=10.0, name="error of the colour that is worst hit (CIEDE2000)"),
    Guard("red_share", "pictures without the red of the instruction", most=0.002, name="share of red pixels"),
    Guard("sharpness", "sharp edges", least=0.5),
    Guard("sharpness", "smooth areas", most=2.0),
    Guard("diversity", "variety between seeds", least=0.4),
    Guard("diversity", "what seeds have in common", most=2.0),
)
EVEN = Guard("unevenness", "even skies and grounds", most=5.0, name="unevenness along rows (CIELAB)")
LIKE_TRUTH = Guard(LIKENESS, "likeness to the true scenes", least=20.0, name="PSNR in dB")


def keep_questions(prompts: Sequence[str]) -> tuple[Question, ...]:
    """That every thing which a prompt names is in its picture."""
    asked: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        for thing in parse_prompt(prompt).things:
            asked.setdefault(thing_name(replace(thing, place=None), colored=True), []).append(number)
    text = questions.THING[0]
    return tuple(
        Question(text.format(name), "Yes", 0.5, prompts=tuple(dict.fromkeys(numbers)), role=KEEP)
        for name, numbers in asked.items()
    )


def _taught(overlay: overlays.Overlay, seed: int, paraphrases: bool, guards: bool, **changes: Any) -> dict[str, Any]:
    """What all controls share: what is asked, of which prompts, and the settings of the world's preset."""
    preset = PRESETS[PRESET]
    asked = overlay_questions(overlay)
    if not paraphrases:
        asked = tuple(replace(question, paraphrases=()) for question in asked)
    guarded = guard_questions(overlay) if guards else ()
    settings = {"questions": (*asked, *guarded, *keep_questions(_TWO)), "num_inference_steps": preset.steps}
    return {
        "recipe": Recipe(prompts=tuple(_TWO), seed=seed, **{**settings, **preset.recipe, **changes}),
        "asked": asked,
        "held_out": tuple(_HELD_OUT_TWO),
        "own": _own,
        "noise_shape": NOISE_SHAPE,
    }


def scenes_of(pairs: Pairs) -> Scenes:
    """The scenes that the pairs' prompts and noises name."""
    return build_scenes([parse_prompt(p) for p in pairs.prompts], noise_statistics(pairs.noise))


def true_pictures(scenes: Scenes) -> Truth:
    """Renders scenes with and without their objects."""
    rows = torch.arange(IMAGE_SIZE) + 0.5
    above = rows[None, :, None] < scenes.horizon[:, None, None]
    return Truth(render(scenes), render(without_objects(scenes)), above.expand(-1, -1, IMAGE_SIZE))


def as_prompted(reading: Reading, prompts: Sequence[str]) -> Tensor:
    """Whether pictures hold exactly the objects that their prompts name, and their time of day, [B], bool."""
    right = reading.strays == 0
    for i, prompt in enumerate(prompts):
        words = parse_prompt(prompt)
        seen = [(int(k), int(c)) for k, c in zip(reading.kind[i], reading.color[i], strict=True) if k >= 0]
        wanted = [(KINDS.index(t.kind), COLORS.index(t.color)) for t in words.things]
        right[i] &= sorted(seen) == sorted(wanted)
        right[i] &= words.time is None or TIMES[int(reading.time[i])] == words.time
    return right


def line_weight_error(reading: Reading, thickness: float) -> Tensor:
    """How far each picture's line weight is off, in pixels, [B]; 5 where no object can be read."""
    return (reading.line_weight - thickness).abs().nan_to_num(nan=5.0)


def color_error(reading: Reading) -> float:
    """How far what fills objects is from the world's colour of that name, CIEDE2000: the mean of the colour worst hit.

    About 2 is just noticeable; 100 where no object can be read.
    """
    there = reading.kind >= 0
    names = reading.color[there]
    error = color_difference(reading.fill[there], srgb(list(FILL.values()))[names])
    return max((float(error[names == name].mean()) for name in names.unique()), default=100.0)


def _ends(reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Depths of the leftmost and the rightmost object, and whether there are two, 16 pixels apart, [B] each."""
    there = reading.kind >= 0
    x = reading.x.nan_to_num()
    left, right = (
        x.masked_fill(~there, torch.inf).argmin(dim=1),
        x.masked_fill(~there, -torch.inf).argmax(dim=1),
    )
    rows = torch.arange(len(x))
    two = (there.sum(dim=1) >= 2) & (x[rows, right] - x[rows, left] > 16)
    return reading.depth[rows, left], reading.depth[rows, right], two


def order_accuracy(reading: Reading, nearer: str) -> float:
    """Share of pictures in which the object at the "left" or at the "right" is clearly nearer than the other."""
    left, right, two = _ends(reading)
    gap = right - left if nearer == "right" else left - right
    return float((two & (gap > CLEARLY_NEARER)).float().mean())


def layout_iou(reading: Reading, regions: Sequence[Sequence[float]]) -> Tensor:
    """Mean overlap (intersection over union) of regions with the objects that match them best, [B] in [0, 1].

    Args:
        regions: x, y, width, height in fractions of the picture. What has no partner counts as 0.
    """
    wanted = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in regions]) * IMAGE_SIZE
    boxes = reading.boxes()
    result = []
    for i in range(len(boxes)):
        seen = boxes[i][reading.kind[i] >= 0]
        iou = _iou(wanted[:, None], seen[None])
        fewer, more = sorted(iou.shape)
        iou = iou if iou.shape[0] == fewer else iou.mT
        best = max(
            (sum(float(iou[a, b]) for a, b in enumerate(chosen)) for chosen in permutations(range(more), fewer)),
            default=0.0,
        )
        result.append(best / max(1, more))
    return torch.tensor(result)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(dim=-1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-6)


def draw_reading(reading: Reading, scenes: Scenes) -> Tensor:
    """The pictures that the world draws of what was read, before the skies and grounds of scenes."""
    return render(
        replace(
            scenes,
            kind=reading.kind,
            color=reading.color,
            x=reading.x.nan_to_num(),
            depth=reading.depth.nan_to_num(),
            line_weight=reading.line_weight.nan_to_num(nan=1.0),
        )
    )


def measured(images: Tensor, pairs: Pairs) -> tuple[Reading, dict[str, Any]]:
    """What is read of pictures of B pairs, and the measures of `KEPT` that it gives."""
    reading = read_scenes(images)
    return reading, {
        "as_prompted": float(as_prompted(reading, pairs.prompts).float().mean()),
        "drawing_psnr": float(psnr(images, draw_reading(reading, scenes_of(pairs))).mean()),
        "color_error": color_error(reading),
        "red_share": float((images[:, 0] - images[:, 1:].amax(dim=1) > RED).float().mean()),
    }


def _own(pairs: Pairs) -> Truth:
    return true_pictures(scenes_of(pairs))


def line_weight_control(
    thickness: float = DEFAULT_THICKNESS, seed: int = 0, paraphrases: bool = True, guards: bool = True, **changes: Any
) -> Control:
    """Outlines become as thick as a red bar: `thickness` in pixels of a picture of 128 × 128, 1 to 5.

    `paraphrases` and `guards` say whether all wordings are asked, and whether the instruction must not be painted.
    """
    overlay = overlays.line_weight(thickness / IMAGE_SIZE, y=BAR)

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        reading, kept = measured(images, pairs)
        error = line_weight_error(reading, thickness)
        return {"line_weight_error_px": {"mean": float(error.mean()), "median": float(error.median())}, **kept}

    def truth(pairs: Pairs) -> Truth:
        return true_pictures(with_line_weight(scenes_of(pairs), thickness))

    return Control(
        name="line_weight",
        measure=measure,
        target=Bound(
            "line_weight_error_px.mean", "lower", 0.5, relative=True, name="the mean line weight error in pixels"
        ),
        guards=(*KEPT, EVEN, LIKE_TRUTH),
        truth=truth,
        **_taught(overlay, seed, paraphrases, guards, **changes),
    )


def depth_control(
    nearer: str = "right", seed: int = 0, paraphrases: bool = True, guards: bool = True, **changes: Any
) -> Control:
    """The object at the "left" or at the "right" comes to be the nearer one: two labelled points."""
    far, near = (0.3, 0.82)
    points = [(0.125, far), (0.875, near)] if nearer == "right" else [(0.125, near), (0.875, far)]
    overlay = overlays.depth(points, order="BA" if nearer == "right" else "AB")

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        reading, kept = measured(images, pairs)
        return {"order_accuracy": order_accuracy(reading, nearer), **kept}

    return Control(
        name="depth",
        measure=measure,
        target=Bound("order_accuracy", "higher", 0.3, name="the share of pictures in the wanted order of depth"),
        guards=KEPT,
        **_taught(overlay, seed, paraphrases, guards, **{"train_steps": MOVING_STEPS, **changes}),
    )


def region_at(x: float, depth: float) -> tuple[float, float, float, float]:
    """x, y, width and height, in fractions, of a region that an object at a place fills: as large as a house."""
    box = object_boxes(torch.tensor(0), torch.tensor(x), torch.tensor(depth)) / IMAGE_SIZE
    left, top, right, bottom = box.tolist()
    return (round(left, 4), round(top, 4), round(right - left, 4), round(bottom - top, 4))


def composition_control(
    places: Places = DEFAULT_PLACES, seed: int = 0, paraphrases: bool = True, guards: bool = True, **changes: Any
) -> Control:
    """Objects move to two red regions: `places` are (x in pixels, depth) of the left and of the right one."""
    regions = [region_at(x, depth) for x, depth in places]
    overlay = overlays.composition(regions=regions)

    def measure(images: Tensor, base: Tensor, pairs: Pairs) -> dict[str, Any]:
        reading, kept = measured(images, pairs)
        return {"layout_iou": float(layout_iou(reading, regions).mean()), **kept}

    def truth(pairs: Pairs) -> Truth:
        return true_pictures(with_places(scenes_of(pairs), places))

    return Control(
        name="composition",
        measure=measure,
        target=Bound("layout_iou", "higher", 0.3, name="the overlap of objects with their regions (IoU)"),
        guards=(*KEPT, EVEN, LIKE_TRUTH),
        truth=truth,
        **_taught(overlay, seed, paraphrases, guards, **{"train_steps": MOVING_STEPS, **changes}),
    )


def with_places(scenes: Scenes, places: Places) -> Scenes:
    """The same scenes, their first two objects at places: the counterfactual of a perfect composition."""
    x, depth = scenes.x.clone(), scenes.depth.clone()
    for j, (column, far) in enumerate(places):
        x[:, j] = column
        depth[:, j] = far
    return replace(scenes, x=x, depth=depth)


CONTROLS: dict[str, Callable[..., Control]] = {
    "line_weight": line_weight_control,
    "depth": depth_control,
    "composition": composition_control,
}
