"""The node that draws an overlay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dual_process.overlays import Overlay

from .parts import Node

FOLDED = {"dual_process_editor": False}  # properties of a node whose editor is folded away, where there is little room


def overlay_node(overlay: Overlay) -> Node:
    """The node of an overlay's only layer; its values are rounded as the frontend's widgets round them."""
    (layer,) = overlay.layers
    values: Any = layer
    match layer.kind:
        case "horizon":
            return Node("DualProcessHorizonOverlay", {"position": values.position})
        case "palette":
            return Node("DualProcessPaletteOverlay", {"colors": list(values.colors)})
        case "line_weight":
            return Node("DualProcessLineWeight", {"thickness": round(values.thickness, 3), "y": round(values.y, 2)})
        case "depth":
            points = "\n".join(_row(point) for point in values.points)
            return Node("DualProcessDepthPoints", {"points": points}, properties=FOLDED)
        case "composition":
            regions = "\n".join(_row((r.x, r.y, r.width, r.height), r.text) for r in values.regions)
            lines = "\n".join(_row((s.x1, s.y1, s.x2, s.y2), s.text) for s in values.lines)
            texts = "\n".join(_row((n.x, n.y), n.text) for n in values.texts)
            drawn = {"regions": regions, "lines": lines, "texts": texts}
            return Node("DualProcessComposition", drawn, properties=FOLDED)
    raise ValueError(f"no template shows an overlay of the kind {layer.kind!r}")


def _row(numbers: Iterable[float], text: str = "") -> str:
    """For example "0.1, 0.2: sky"."""
    return ", ".join(f"{number:g}" for number in numbers) + (f": {text}" if text else "")
