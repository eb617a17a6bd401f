"""A control with a slider: ranges of overlays to train it, and the trained LoRA at any value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io
from torch import Tensor

from .lora_model import TrainedLora
from .progress import show_text
from .types import CATEGORY, Overlay

LORA_FROM_WIRE = "(the connected LoRA)"
ATTACHED = "dual_process.sliders"  # of a MODEL: what its sliders control


class OverlayRange(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessOverlayRange",
            display_name="Overlay Range",
            category=CATEGORY,
            description="All overlays between two of the same kind. A LoRA that is trained with it has a slider: one "
            "training, a whole range of values.",
            search_aliases=["slider", "range", "concept slider"],
            inputs=[
                Overlay.Input("first", tooltip="The overlay at the slider's lower end, such as a horizon at 0.3."),
                Overlay.Input("last", tooltip="The overlay at its upper end, alike but for numbers, places or colors."),
            ],
            outputs=[
                Overlay.Output(
                    display_name="overlay",
                    tooltip="For VLM Question. Apply Overlay draws it over a batch from end to end, or its middle.",
                )
            ],
        )

    @classmethod
    def execute(cls, first: Any, last: Any) -> io.NodeOutput:
        from ..overlays import between

        return io.NodeOutput(between(first, last))


class Slider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessSlider",
            display_name="Slider",
            category=CATEGORY,
            description="Applies a LoRA with a slider at a value, and says what that is in the control's own unit, "
            "such as a horizon at 45 %. Other LoRA loaders can, too: the file at strength 1, and the one "
            "beside it, named .slider, at the value.",
            search_aliases=["load slider lora", "concept slider"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that the LoRA was trained on, or one like it."),
                io.Combo.Input(
                    "lora_name",
                    options=[LORA_FROM_WIRE, *names_of_sliders()],
                    tooltip="A LoRA with a slider, as Save Distilled LoRA saves it: two files, listed as one.",
                ),
                io.Float.Input(
                    "value",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="-1 is the first end of the range that was trained, 1 the last. The node says what it is.",
                ),
                io.LoraModel.Input(
                    "lora", optional=True, tooltip="A LoRA with a slider from Distill LoRA, in place of a file."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the LoRA at this value."),
                io.String.Output(display_name="text", tooltip="The value in the control's own unit."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: Any, lora_name: str, value: float, lora: dict[str, Tensor] | None = None) -> io.NodeOutput:
        from ..distillation import LoraFileError, read_slider
        from ..overlays import build

        if lora is not None:
            parts = slider_of(lora)
        elif lora_name == LORA_FROM_WIRE:
            raise LoraFileError("No LoRA with a slider is chosen: choose a file, or connect Distill LoRA.")
        else:
            parts = read_slider(folder_paths.get_full_path_or_raise("loras", lora_name))
        ranges = [build(data) for data in parts.overlays]
        said = ", ".join(dict.fromkeys(overlay.describe(value) for overlay in ranges))  # type: ignore[union-attr]
        controls = {layer["kind"] for data in parts.overlays for layer in data}
        show_text(said, cls.hidden.unique_id)
        return io.NodeOutput(apply(model, parts, value, controls), said)


def apply(model: Any, parts: Any, value: float, controls: set[str]) -> Any:
    """The MODEL with both parts of a LoRA with a slider, and a note of what it controls.

    Raises:
        LoraFileError: the MODEL has a slider of one of these controls.
    """
    from ..distillation import LoraFileError

    there = set(model.get_attachment(ATTACHED) or ())
    if twice := sorted(controls & there):
        raise LoraFileError(
            f"The MODEL has a slider for {', '.join(twice)} already: two would add up. Bypass one of the Slider nodes."
        )
    for tensors, strength in ((parts.constant, 1.0), (parts.slider, value)):
        if strength:
            model, _ = comfy.sd.load_lora_for_models(model, None, dict(tensors), strength, 0.0)
    model = model.clone()
    model.set_attachments(ATTACHED, (*there, *controls))
    return model


def slider_of(lora: Any) -> Any:
    """Both parts of a connected LoRA. Raises LoraFileError where it has no slider."""
    from ..distillation import LoraFileError, SliderLora

    if not isinstance(lora, TrainedLora) or lora.slider is None:
        raise LoraFileError(
            "The connected LoRA has no slider. Train one: connect an Overlay Range to the VLM Question, not an overlay."
        )
    return SliderLora.of(lora, lora.slider, lora.metadata)


def names_of_sliders() -> list[str]:
    """LoRA files that have the part that a slider counts beside them."""
    from ..distillation import slider_path

    names = folder_paths.get_filename_list("loras")
    return [name for name in names if slider_path(name).as_posix() in {Path(other).as_posix() for other in names}]


NODES = [OverlayRange, Slider]
