"""The embedded default: tiny trained models, so that every workflow runs at once, on the CPU, without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from .stages import THINKER
from .types import CATEGORY, Critic, Painter, outside_inference_mode

FOR_CONTROLS, FOR_PROCESS = "controls", "process"  # the second world's critics


def _load(weights: Path, preset: str, critic_of: Callable[[], Any] | None = None) -> tuple[Any, Any, Any, Any]:
    """A world's MODEL, CLIP, VAE and critic, the one in its `critic/` by default."""
    from ..critics import load_critic
    from ..demo.comfy.models import load_models

    with outside_inference_mode():
        critic = load_critic(weights / "critic", device="cpu") if critic_of is None else critic_of()
    return (*load_models(weights / "pipeline", preset), critic)


class LoadDemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadDemoModels",
            display_name="Load Demo Models",
            category=CATEGORY,
            description="Tiny trained models that ship with the pack: a Flux that paints landscapes of 112 × 112 "
            'pixels from prompts such as "a sunset sky over the sea", and a critic for them. They train on the CPU '
            "in a few minutes.",
            search_aliases=["dual process demo", "tiny flux"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A Flux schnell of 2 M parameters, made for 1 step."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoders. They know: a, the, sky, over, under, with, sea, sand, grass, day, "
                    "sunset, night, house, tree, ball.",
                ),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: 16 channels, 8 pixels per latent pixel."),
                Critic.Output(
                    display_name="critic",
                    tooltip="A Qwen2.5-VL of 2 M parameters that answers about horizon, palette, time of day, ground "
                    "and objects of these landscapes.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo import WEIGHTS

        return io.NodeOutput(*_load(WEIGHTS, "demo"))


class LoadDemoStrokes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadDemoStrokes",
            display_name="Load Demo Strokes",
            category=CATEGORY,
            description="Tiny trained models of a second world that ship with the pack: a Flux that draws houses, "
            'trees and balls with outlines, 128 × 128 pixels, from prompts such as "a blue house and a tree by night", '
            "and a critic for line weight, depth and composition. They train on the CPU in a few minutes, and paint by "
            "process in a few seconds.",
            search_aliases=["dual process demo", "tiny flux", "line weight", "depth", "composition", "process"],
            inputs=[
                io.Combo.Input(
                    "critic",
                    options=[FOR_CONTROLS, FOR_PROCESS],
                    default=FOR_CONTROLS,
                    optional=True,
                    advanced=True,
                    tooltip="Which critic: the one by which controls and process were measured, or the same after a "
                    "lesson in the process, which plans by itself and takes no object for its twin, but doubts more.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="A Flux schnell of 5 M parameters, made for 1 step. Shown a picture by Reference Latent, "
                    'it changes it as the prompt says: "add a blue house far left", "remove the tree near right".',
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoders. They know houses, trees and balls, one to four of them, in yellow, "
                    "blue, green and white; far or near, left, middle or right; by day, by dusk and by night.",
                ),
                io.Vae.Output(display_name="vae", tooltip="Its VAE: 16 channels, 8 pixels per latent pixel."),
                Critic.Output(
                    display_name="critic",
                    tooltip="A Qwen2.5-VL of 3 M parameters that answers about line weight, depth, composition and "
                    "what stands where in these drawings, and inspects them for Paint by Process.",
                ),
                Painter.Output(
                    display_name="painter",
                    tooltip="The model as a painter for Paint by Process: it sees its picture and is told what to add.",
                ),
            ],
        )

    @classmethod
    def execute(cls, critic: str = FOR_CONTROLS) -> io.NodeOutput:
        from ..demo.strokes import PRESET, WEIGHTS
        from ..demo.strokes.process import StrokesThinker, TaughtThinker, load_process_critic
        from ..demo.strokes.world import IMAGE_SIZE
        from ..painters.comfy import REFERENCE, ComfyPainter

        taught = critic == FOR_PROCESS
        model, clip, vae, asked = _load(WEIGHTS, PRESET, load_process_critic if taught else None)
        setattr(asked, THINKER, TaughtThinker if taught else StrokesThinker)
        painter = ComfyPainter(model, clip, vae, REFERENCE, IMAGE_SIZE, IMAGE_SIZE, 1, 1.0, "euler", "simple")
        return io.NodeOutput(model, clip, vae, asked, painter)


class LoadDemoComparingCritic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadDemoComparingCritic",
            display_name="Load Demo Comparing Critic",
            category=CATEGORY,
            description="The critic of Load Demo Models after a lesson in comparing: asked with a reference, it says "
            "how alike two of these landscapes are, from 1 to 5, or whether they have the same style. For Pick "
            "Favourites and for references of VLM Question.",
            search_aliases=["dual process demo", "reference", "compare", "favourites"],
            inputs=[],
            outputs=[
                Critic.Output(
                    display_name="critic",
                    tooltip="A Qwen2.5-VL of 2 M parameters that compares a landscape with one reference, and still "
                    "answers what it knew before.",
                )
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..demo.comparing import load_comparing_critic

        with outside_inference_mode():
            return io.NodeOutput(load_comparing_critic())


NODES = [LoadDemoModels, LoadDemoStrokes, LoadDemoComparingCritic]
