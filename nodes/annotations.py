"""Visual prompts that need places: line weight, depth points, composition."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .overlays import backdrop, below, output, stacked
from .questions import field_help
from .types import CATEGORY


def _fraction(name: str, default: float, tooltip: str, **limits: Any) -> Any:
    limits = {"min": 0.0, "max": 1.0, "step": 0.01, **limits}
    return io.Float.Input(name, default=default, tooltip=tooltip, **limits)


class LineWeightOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import LineWeight

        def help_of(name: str) -> str:
            return field_help(LineWeight, name)

        return io.Schema(
            node_id="DualProcessLineWeight",
            display_name="Line Weight Overlay",
            category=CATEGORY,
            description="A bar as thick as the lines of the picture shall be, for drawings and cartoons.",
            search_aliases=["stroke width", "line thickness"],
            inputs=[
                _fraction(
                    "thickness",
                    0.02,
                    f"{help_of('thickness')} 0.02 is about 10 px of 512.",
                    min=0.002,
                    max=0.2,
                    step=0.002,
                    display_mode=io.NumberDisplay.slider,
                ),
                io.Color.Input("color", default="#ff0000", tooltip=help_of("color")),
                _fraction("x", 0.5, help_of("x"), advanced=True),
                _fraction("y", 0.92, help_of("y"), advanced=True),
                _fraction("length", 0.6, help_of("length"), min=0.05, advanced=True),
                _fraction("compare", 0.0, f"{help_of('compare')} 0: none.", max=0.2, step=0.002, advanced=True),
                below(),
            ],
            outputs=output(),
        )

    @classmethod
    def execute(
        cls, thickness: float, color: str, x: float, y: float, length: float, compare: float, overlay: Any = None
    ) -> io.NodeOutput:
        from ..overlays import line_weight

        return stacked(line_weight(thickness, compare or None, x, y, length, color), overlay)


class DepthPointsOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import DepthPoints

        return io.Schema(
            node_id="DualProcessDepthPoints",
            display_name="Depth Points Overlay",
            category=CATEGORY,
            description="Dots A, B, … on the picture, of which the question says which is nearer.",
            search_aliases=["relative depth", "foreground background"],
            inputs=[
                io.String.Input(
                    "points",
                    multiline=True,
                    default="0.3, 0.35\n0.7, 0.75",
                    tooltip="One point a line, 'x, y' in fractions from the upper left: the first is A, then B, …",
                ),
                io.Color.Input("color", default="#ff0000", tooltip=field_help(DepthPoints, "color")),
                _fraction(
                    "radius",
                    0.035,
                    field_help(DepthPoints, "radius"),
                    min=0.01,
                    max=0.25,
                    step=0.005,
                    advanced=True,
                ),
                below(),
                io.String.Input(
                    "order",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Their letters from the nearest to the farthest, such as 'BA'; empty: A is the nearest. "
                    "It is noted in the recipe; the question has to say the same.",
                ),
                backdrop(),
            ],
            outputs=output(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        points: str,
        color: str,
        radius: float,
        overlay: Any = None,
        order: str = "",
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..overlays import depth

        places = [numbers for numbers, _ in read_rows("points", points, 2, labelled=False)]
        return stacked(depth(places, order.strip().upper() or None, radius, color), overlay, image)


class CompositionOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import Composition

        return io.Schema(
            node_id="DualProcessComposition",
            display_name="Composition Overlay",
            category=CATEGORY,
            description="Regions, lines and texts drawn on the picture that say how it shall be composed.",
            search_aliases=["layout", "regions", "annotations"],
            inputs=[
                io.String.Input(
                    "regions",
                    multiline=True,
                    default="0.05, 0.55, 0.9, 0.4: a large expanse like a field",
                    tooltip="One rectangle a line, 'x, y, width, height: text' in fractions from the upper left.",
                ),
                io.String.Input(
                    "lines",
                    multiline=True,
                    default="",
                    tooltip="One straight line a line, 'x1, y1, x2, y2: text' in fractions from the upper left corner.",
                ),
                io.String.Input(
                    "texts",
                    multiline=True,
                    default="",
                    tooltip="One text a line, 'x, y: text', around that point.",
                ),
                io.Color.Input("color", default="#ff0000", tooltip=field_help(Composition, "color")),
                _fraction(
                    "thickness",
                    0.008,
                    field_help(Composition, "thickness"),
                    min=0.001,
                    max=0.1,
                    step=0.001,
                    advanced=True,
                ),
                below(),
                backdrop(),
            ],
            outputs=output(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        regions: str,
        lines: str,
        texts: str,
        color: str,
        thickness: float,
        overlay: Any = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..overlays import composition

        rows = [
            [(*numbers, text) for numbers, text in read_rows(name, typed, count)]
            for name, typed, count in (("regions", regions, 4), ("lines", lines, 4), ("texts", texts, 2))
        ]
        return stacked(composition(*rows, thickness=thickness, color=color), overlay, image)


def read_rows(name: str, typed: str, count: int, labelled: bool = True) -> list[tuple[list[float], str]]:
    """Numbers and the text behind them from lines such as "0.1, 0.2: sky"; empty lines are passed over.

    Raises:
        OverlayError: a line without `count` numbers.
    """
    from ..distillation import OverlayError

    rows = []
    for number, line in enumerate(typed.splitlines(), 1):
        if not line.strip():
            continue
        places, _, text = line.partition(":") if labelled else (line, "", "")
        try:
            numbers = [float(part) for part in places.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != count:
            wanted = ", ".join(["0.5"] * count) + (": text" if labelled else "")
            raise OverlayError(f"Expected line {number} of {name} like '{wanted}', got {line.strip()!r}.")
        rows.append((numbers, text.strip()))
    return rows


NODES = [LineWeightOverlay, DepthPointsOverlay, CompositionOverlay]
