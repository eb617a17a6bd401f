"""Visual prompts: what is drawn on the picture before the critic looks."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from .questions import field_help
from .types import CATEGORY, Overlay, outside_inference_mode, to_comfy, to_engine


def below() -> Any:
    return Overlay.Input("overlay", optional=True, tooltip="Another overlay that lies below this one.")


def backdrop() -> Any:
    return io.Image.Input(
        "image",
        optional=True,
        tooltip="A picture to draw on in this node; only the first of a batch. It is no part of the overlay.",
    )


def output() -> list[Any]:
    return [Overlay.Output(display_name="overlay", tooltip="For VLM Question, Apply Overlay, or to stack another on.")]


def stacked(new: Any, below: Any | None, image: Tensor | None = None) -> io.NodeOutput:
    """The overlay on the one below it; `image` goes to the node's editor."""
    files = None if image is None else {"dual_process_backdrop": ui.PreviewImage(image[:1]).as_dict()["images"]}
    return io.NodeOutput(new if below is None else below + new, ui=files)


class HorizonOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import HorizonLine

        return io.Schema(
            node_id="DualProcessHorizonOverlay",
            display_name="Horizon Overlay",
            category=CATEGORY,
            description="A straight line across the picture where the horizon shall be.",
            inputs=[
                io.Float.Input(
                    "position",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip=f"{field_help(HorizonLine, 'position')} 0 is the top, 1 the bottom.",
                ),
                io.Color.Input("color", default="#ff0000", tooltip=field_help(HorizonLine, "color")),
                io.Float.Input(
                    "thickness",
                    default=0.02,
                    min=0.002,
                    max=0.2,
                    step=0.002,
                    advanced=True,
                    tooltip=f"{field_help(HorizonLine, 'thickness')} 0.02 is about 10 px of 512.",
                ),
                below(),
                io.Float.Input(
                    "tilt",
                    default=0.0,
                    min=-45.0,
                    max=45.0,
                    step=0.5,
                    optional=True,
                    advanced=True,
                    tooltip=field_help(HorizonLine, "tilt"),
                ),
                backdrop(),
            ],
            outputs=output(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        position: float,
        color: str,
        thickness: float,
        overlay: Any = None,
        tilt: float = 0.0,
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..overlays import horizon

        return stacked(horizon(position, thickness, color, tilt), overlay, image)


class PaletteOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import PaletteStrip

        return io.Schema(
            node_id="DualProcessPaletteOverlay",
            display_name="Palette Overlay",
            category=CATEGORY,
            description="A strip of colour swatches along a side, which the picture's colours shall match.",
            search_aliases=["color palette", "swatches"],
            inputs=[
                io.Colors.Input(
                    "colors",
                    default=["#6a4a82", "#e89a5c", "#7a5068", "#4a3250"],
                    tooltip=f"{field_help(PaletteStrip, 'colors')} Two to six work best.",
                ),
                io.Float.Input(
                    "height",
                    default=0.15,
                    min=0.02,
                    max=0.5,
                    step=0.01,
                    advanced=True,
                    tooltip=field_help(PaletteStrip, "height"),
                ),
                below(),
                io.Combo.Input(
                    "side",
                    options=["bottom", "top", "left", "right"],
                    default="bottom",
                    optional=True,
                    advanced=True,
                    tooltip="The side of the picture along which the strip lies; say it in the question, too.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="A picture whose colours are taken in place of `colors`; only the first of a batch.",
                ),
                io.Int.Input(
                    "reference_colors",
                    default=5,
                    min=1,
                    max=12,
                    optional=True,
                    advanced=True,
                    tooltip="How many colours are taken from the reference, the most frequent first.",
                ),
            ],
            outputs=output(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        colors: list[str],
        height: float,
        overlay: Any = None,
        side: str = "bottom",
        reference: Tensor | None = None,
        reference_colors: int = 5,
    ) -> io.NodeOutput:
        from ..overlays import colors_of, palette

        if reference is None:
            return stacked(palette(colors, height, side), overlay)
        found = colors_of(_to_pillow(reference, None), reference_colors)
        made = stacked(palette(found, height, side), overlay)
        return io.NodeOutput(*made.args, ui={"dual_process_colors": list(found)})


class ImageOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..overlays import ImageOverlay as Picture

        return io.Schema(
            node_id="DualProcessImageOverlay",
            display_name="Image Overlay",
            category=CATEGORY,
            description="Any picture as a visual prompt, for example red notes drawn on white.",
            inputs=[
                io.Image.Input(
                    "image", tooltip="The picture; only the first of a batch. It is stretched to the image."
                ),
                io.Combo.Input("mode", options=["solid", "transparent"], tooltip=field_help(Picture, "mode")),
                io.Float.Input(
                    "opacity", default=0.5, min=0.0, max=1.0, step=0.05, tooltip=field_help(Picture, "opacity")
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the picture covers: 1 shows it, 0 hides it. Same size as it."
                ),
                below(),
            ],
            outputs=output(),
        )

    @classmethod
    def execute(
        cls, image: Tensor, mode: str, opacity: float, mask: Tensor | None = None, overlay: Any = None
    ) -> io.NodeOutput:
        from ..overlays import ImageOverlay as Picture
        from ..overlays import Overlay as Stack

        return stacked(Stack((Picture.from_image(_to_pillow(image, mask), mode, opacity),)), overlay)


def _to_pillow(image: Tensor, mask: Tensor | None) -> Any:
    """IMAGE [B, H, W, 1, 3 or 4] and MASK [B, H, W] -> one RGBA picture."""
    from PIL import Image

    from ..distillation import OverlayError

    pixels = (image[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGBA")
    if mask is not None:
        height, width = image.shape[1:3]
        if tuple(mask.shape[-2:]) != (height, width):
            raise OverlayError(
                f"Expected a mask of the image's size, {width} × {height} (width × height), got "
                f"{mask.shape[-1]} × {mask.shape[-2]}. Resize one of them."
            )
        cover = (mask.reshape(-1, height, width)[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
        picture.putalpha(Image.fromarray(cover))
    return picture


class ApplyOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessApplyOverlay",
            display_name="Apply Overlay",
            category=CATEGORY,
            description="Draws an overlay on pictures, exactly as the critic sees them in training.",
            inputs=[
                io.Image.Input("image", tooltip="Pictures of any size."),
                Overlay.Input("overlay", tooltip="What to draw on them."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The pictures with the overlay, same size.")],
        )

    @classmethod
    def execute(cls, image: Tensor, overlay: Any) -> io.NodeOutput:
        with outside_inference_mode():
            return io.NodeOutput(to_comfy(overlay.apply(to_engine(image))))


NODES = [HorizonOverlay, PaletteOverlay, ImageOverlay, ApplyOverlay]
