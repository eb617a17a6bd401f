"""The embedded default: tiny trained models, so that every workflow runs at once, on the CPU, without a download."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, Critic, outside_inference_mode


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
        from ..critics import load_critic
        from ..demo import WEIGHTS
        from ..demo.comfy.models import load_models

        with outside_inference_mode():
            critic = load_critic(WEIGHTS / "critic", device="cpu")
        return io.NodeOutput(*load_models(), critic)


NODES = [LoadDemoModels]
