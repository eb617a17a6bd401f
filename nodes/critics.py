"""Loading a critic from a model folder."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from comfy_api.latest import io

from .folders import NONE_FOUND, critic_folders, critic_names, fingerprint
from .types import CATEGORY, Critic, outside_inference_mode

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")

# Nodes that ask for the same critic share it for as long as any of them holds it.
_loaded: WeakValueDictionary[tuple[str, str, str], Any] = WeakValueDictionary()


class LoadVLMCritic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadVLMCritic",
            display_name="Load VLM Critic",
            category=CATEGORY,
            description="Loads a vision-language model that judges pictures. It is never trained.",
            search_aliases=["vision language model", "qwen", "idefics", "vqa"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=critic_names(),
                    tooltip="A folder of models/VLM or models/LLM in the layout of Hugging Face transformers. Only "
                    "vision-language models are listed. Nothing is downloaded.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of the weights. auto: bfloat16 on a GPU, float32 on the CPU.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    default="auto",
                    advanced=True,
                    tooltip="Where the critic computes. auto: the GPU if there is one.",
                ),
            ],
            outputs=[Critic.Output(display_name="critic", tooltip="The critic, for VQA Loss and Ask VLM Critic.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, **_: Any) -> str:
        folder = critic_folders().get(model)
        return fingerprint(folder) if folder else model

    @classmethod
    def execute(cls, model: str, dtype: str, device: str) -> io.NodeOutput:
        from ..critics import load_critic
        from ..distillation import CriticError

        folder = critic_folders().get(model)
        if folder is None:
            known = "" if model == NONE_FOUND else f" {model!r} is not among them."
            raise CriticError(
                "Expected the folder of a vision-language model below models/VLM or models/LLM, with config.json, "
                f"weights, tokenizer and image processor.{known} Put one there, press R, and choose it."
            )
        key = (fingerprint(folder), dtype, device)
        critic = _loaded.get(key)
        if critic is None:
            with outside_inference_mode():
                critic = load_critic(folder, None if device == "auto" else device, None if dtype == "auto" else dtype)
            _loaded[key] = critic
        return io.NodeOutput(critic)


NODES = [LoadVLMCritic]
