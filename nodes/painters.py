"""Who paints in a process: a MODEL, CLIP and VAE of ComfyUI."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from .types import CATEGORY
from .types import Painter as PainterSocket


class Painter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..painters.comfy import INPAINT, MODES

        return io.Schema(
            node_id="DualProcessPainter",
            display_name="Painter",
            category=CATEGORY,
            description="Who drafts a picture and changes it stroke by stroke for Paint by Process: any image model, "
            "with whatever LoRAs are applied to it.",
            search_aliases=["inpaint", "kontext", "qwen image edit", "process", "strokes"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, with any LoRAs already applied to it."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=INPAINT,
                    tooltip="How a stroke is made. inpaint, with any model: its region is painted anew. reference: the "
                    "model sees the picture and is told what to change (Flux Kontext, FLUX.2). qwen edit: the same "
                    "for Qwen-Image-Edit, whose CLIP sees the picture, too; qwen edit plus: its versions from 2509 on.",
                ),
                io.Int.Input(
                    "width", default=1024, min=16, max=16384, step=16, tooltip="Width of the pictures, in pixels."
                ),
                io.Int.Input(
                    "height", default=1024, min=16, max=16384, step=16, tooltip="Height of the pictures, in pixels."
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampler steps of each pass."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance, as in KSampler. 1: off, as distilled models such as Flux want.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=list(comfy.samplers.KSampler.SAMPLERS),
                    default="euler",
                    tooltip="As in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="simple",
                    tooltip="As in KSampler.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", tooltip="Negative prompt; used only where cfg is not 1."
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="As the FluxGuidance node sets it (Flux Kontext 2.5). 0: the model's own.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="inpaint only: from how much noise a region is painted. 1: anew.",
                ),
                io.Float.Input(
                    "denoise_whole",
                    default=0.6,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="inpaint only: the same where a stroke has no region, so that it changes the whole "
                    "picture. At 1 nothing of the picture would be left.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=0,
                    max=512,
                    advanced=True,
                    tooltip="By how many pixels a stroke's region is widened on every side, before it is widened to "
                    "whole squares of 16.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where strokes may change anything, of the pictures' size; everything else stays as the "
                    "draft has it.",
                ),
            ],
            outputs=[PainterSocket.Output(display_name="painter", tooltip="For Paint by Process and Process Step.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        mode: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        negative: str,
        guidance: float = 0.0,
        denoise: float = 1.0,
        denoise_whole: float = 0.6,
        grow: int = 0,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..painters.comfy import ComfyPainter

        size, sampling = (width, height), (steps, cfg, sampler, scheduler)
        painter = ComfyPainter(
            *(model, clip, vae, mode, *size, *sampling, negative, grow),
            guidance=guidance or None,
            denoise=denoise,
            denoise_whole=denoise_whole,
            mask=mask,
        )
        return io.NodeOutput(painter)


NODES = [Painter]
