"""Loading a critic from a model folder."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from .folders import NONE_FOUND, critic_folders, critic_names, download_target, fingerprint, is_vlm
from .refusals import refused
from .types import CATEGORY, Critic, outside_inference_mode

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")

# Nodes that ask for the same critic share it for as long as any of them holds it.
_loaded: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()

_from_clips: WeakValueDictionary[tuple[int, int], Any] = WeakValueDictionary()


class LoadVLMCritic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessLoadVLMCritic",
            display_name="Load VLM Critic",
            category=CATEGORY,
            description="Loads a vision-language model that judges pictures. It is never trained. All nodes that load "
            "the same one share it, and ComfyUI frees its memory like that of its own models.",
            search_aliases=["vision language model", "qwen", "idefics", "vqa"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=critic_names(),
                    tooltip="A folder of models/VLM or models/LLM in the layout of Hugging Face transformers. Only "
                    "vision-language models are listed.",
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
                    tooltip="Where the critic computes. auto: where ComfyUI computes.",
                ),
                io.Combo.Input(
                    "quantization",
                    options=["none", "8bit", "4bit"],
                    default="none",
                    advanced=True,
                    optional=True,
                    tooltip="Weights of 8 or 4 bits (needs bitsandbytes): a half or a quarter of the memory, slightly "
                    "other answers.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Compute each layer again in the backward pass: less memory while training, a third more "
                    "time, the same result.",
                ),
                io.String.Input(
                    "download",
                    default="",
                    advanced=True,
                    optional=True,
                    tooltip="A Hugging Face id, such as Qwen/Qwen2.5-VL-3B-Instruct: used instead of the folder "
                    "above, and downloaded into models/VLM if it is not there yet. Empty: nothing is downloaded.",
                ),
                io.Int.Input(
                    "max_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=4,
                    advanced=True,
                    optional=True,
                    tooltip="The critic sees larger pictures shrunk to this many pixels squared: less memory and time, "
                    "slightly other answers. 0: off.",
                ),
            ],
            outputs=[Critic.Output(display_name="critic", tooltip="The critic, for VQA Loss and Ask VLM Critic.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str | None, download: str | None = "") -> bool | str:
        """In place of ComfyUI's own check of the list, which is older than folders put there since."""
        if download is None or model is None:  # linked to another node; looked at when that has run
            return True
        if download.strip() or model in critic_folders():
            return True
        return refused(cls, no_critic(model))

    @classmethod
    def fingerprint_inputs(cls, model: str | None, download: str | None = "", **_: Any) -> str:
        if download is None or download.strip():  # the same before and after it has been downloaded
            return "downloaded"
        folder = critic_folders().get(model or "")
        return fingerprint(folder) if folder else str(model)

    @classmethod
    def execute(
        cls,
        model: str,
        dtype: str,
        device: str,
        quantization: str = "none",
        gradient_checkpointing: bool = False,
        download: str = "",
        max_size: int = 0,
    ) -> io.NodeOutput:
        from ..critics.comfy.managed import load_managed_critic
        from ..distillation import CriticError

        wanted = download.strip() or model
        if download.strip() and wanted not in critic_folders():
            fetch(wanted, cls.hidden.unique_id)
        folder = critic_folders().get(wanted)
        if folder is None:
            raise CriticError(no_critic(wanted))
        key = (fingerprint(folder), dtype, device, quantization, gradient_checkpointing, max_size)
        critic = _loaded.get(key)
        if critic is None:
            with outside_inference_mode():
                critic = load_managed_critic(
                    folder,
                    None if device == "auto" else device,
                    None if dtype == "auto" else dtype,
                    None if quantization == "none" else quantization,
                    gradient_checkpointing,
                    max_size or None,
                )
            _loaded[key] = critic
        return io.NodeOutput(critic)


class CriticFromCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DualProcessCriticFromCLIP",
            display_name="Critic from CLIP",
            category=CATEGORY,
            description="Makes a critic of a text encoder that is a whole vision-language model (Qwen3-VL, Qwen3.5, "
            "Gemma 4), so that no second copy is loaded. The CLIP goes on encoding prompts and is not changed.",
            search_aliases=["vision language model", "qwen3-vl", "qwen3.5", "gemma 4", "text encoder", "vqa"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="A Qwen3-VL, Qwen3.5 or Gemma 4 from Load CLIP, of any type but flux and flux2, which "
                    "leave its vision out.",
                ),
                io.Int.Input(
                    "max_size",
                    default=1024,
                    min=256,
                    max=2048,
                    step=32,
                    advanced=True,
                    tooltip="A Qwen sees larger pictures shrunk to this many pixels squared: less memory and time. "
                    "Gemma 4 has a size of its own.",
                ),
            ],
            outputs=[Critic.Output(display_name="critic", tooltip="The critic, for VQA Loss and Ask VLM Critic.")],
        )

    @classmethod
    def execute(cls, clip: Any, max_size: int) -> io.NodeOutput:
        from ..critics.comfy.clip import ClipCritic

        key = (id(clip.patcher), max_size)
        critic = _from_clips.get(key)
        if critic is None or critic.clip is not clip:
            with outside_inference_mode():
                critic = _from_clips[key] = ClipCritic(clip, max_size**2)
        return io.NodeOutput(critic)


def no_critic(model: str) -> str:
    """What to do where there is no such folder."""
    known = "" if model == NONE_FOUND else f" {model!r} is not among them."
    return (
        "Expected the folder of a vision-language model below models/VLM or models/LLM, with config.json, weights, "
        f"tokenizer and image processor.{known} Put one there and press R, or give a Hugging Face id to download."
    )


def fetch(repository: str, node_id: str | None) -> None:
    """Downloads into models/VLM with a bar in the node; Cancel stops it, and the next run goes on from there."""
    from ..critics.downloading import check_repository, download_folder

    check_repository(repository)
    bar = comfy.utils.ProgressBar(100, node_id=node_id)

    def on_progress(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(100 * done / max(total, 1)))

    download_folder(repository, download_target(repository), is_vlm, on_progress)


NODES = [LoadVLMCritic, CriticFromCLIP]
