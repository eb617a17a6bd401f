"""Opens a generator by the class of its diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

from ..core.devices import choose_device
from ..core.errors import DualProcessError, GeneratorError
from ..core.model_folder import check_shards
from ..core.quantization import KINDS, check_quantization
from ..core.quiet import quiet_loading
from ..core.streaming import Offload
from .architectures import ARCHITECTURES, Architecture
from .diffusers.generator import DiffusersGenerator
from .diffusers.loading import from_configurations, from_pipeline, from_pretrained
from .diffusers.tiny_decoder import open_tiny_decoder
from .settings import GeneratorSettings


def load_generator(
    path_or_pipeline: str | Path | DiffusionPipeline,
    prompts: Sequence[str],
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    gradient_checkpointing: bool = False,
    offload: Offload = False,
    tiny_decoder: str | Path | AutoencoderTiny | None = None,
    compile: bool = False,
    download: bool = False,
    quantization: str | None = None,
) -> DiffusersGenerator:
    """A generator with its prompts encoded; the text encoders do not stay.

    Args:
        path_or_pipeline: a folder in diffusers' layout, a Hugging Face id, or a pipeline, which is left as it is.
        prompts: at least one text.
        device: None for the GPU if there is one; for a pipeline, where its transformer lies.
        dtype: None for bfloat16 on a GPU and float32 on the CPU; for a pipeline, its own.
        height, width: default image size in pixels, multiples of 16; None for 512.
        num_inference_steps: default number of sampler steps; None for 4 (Flux schnell) or 28 (Flux dev).
        gradient_checkpointing: recompute activations in the backward pass: less memory, same gradient.
        offload: keep the weights in main memory; they come to `device` only while the generator works, or with "blocks"
            each block's only while that block works (with `gradient_checkpointing`, or the graph would keep them).
        tiny_decoder: an AutoencoderTiny of the model's family, its folder in diffusers' layout or Hugging Face id; it
            is left as it is. `estimate` makes its images by it, for less memory and time and slightly other gradients;
            `sample` keeps the VAE.
        compile: torch.compile the network's repeated blocks for the pass with gradient: faster steps after minutes of
            warm-up, the same numbers but for rounding. Where it fails, a line in the log says so, and nothing is
            compiled.
        download: allow the network; otherwise only folders and files already downloaded are read.
        quantization: "8bit" or "4bit" (both need bitsandbytes) or "fp8" for the network's linear layers, made of a
            folder's whole weights; None takes the weights as they are, a network quantised by bitsandbytes included.

    Raises:
        GeneratorError: nothing is found there, the pipeline's class is not supported, or an argument does not fit.
    """
    texts = _check_prompts(prompts)
    check_quantization(quantization, KINDS, GeneratorError)
    tiny = None if tiny_decoder is None else open_tiny_decoder(tiny_decoder, download)
    settings = GeneratorSettings(
        height, width, num_inference_steps, gradient_checkpointing, offload, tiny_decoder=tiny, compile=compile
    )
    place = None if device is None else choose_device(device, GeneratorError)
    if isinstance(path_or_pipeline, DiffusionPipeline):
        if quantization is not None:
            raise GeneratorError(
                f"Expected a folder to load in {quantization!r}, but a pipeline in memory is taken as it is. Give its "
                "folder, or load the pipeline with a quantization_config of bitsandbytes."
            )
        architecture = _architecture(type(path_or_pipeline).__name__)
        return from_pipeline(architecture, path_or_pipeline, texts, place, dtype, settings)
    place = place or choose_device(None, GeneratorError)
    dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
    options = {"quantization": quantization, "local_files_only": not download}
    return _load(path_or_pipeline, texts, place, dtype, settings, options)


def _load(
    path: str | Path,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    settings: GeneratorSettings,
    options: dict[str, Any],
) -> DiffusersGenerator:
    if not isinstance(path, str | Path):
        raise GeneratorError(
            f"Expected a folder, a Hugging Face id or a diffusers pipeline, got {type(path).__name__}."
        )
    source = str(Path(path).expanduser()) if Path(path).expanduser().exists() else str(path)
    if Path(source).is_dir():
        check_shards(Path(source), GeneratorError)
    try:
        config: Any = DiffusionPipeline.load_config(source, local_files_only=options["local_files_only"])
        architecture = _architecture(str(config.get("_class_name")))
        with quiet_loading():
            return from_pretrained(architecture, source, prompts, device, dtype, settings, **options)
    except DualProcessError:
        raise
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise GeneratorError(
            f"Could not load a generator from {path}: {error} Expected a folder in diffusers' layout, with "
            "model_index.json in it, or a Hugging Face id together with download=True."
        ) from error


def without_weights(
    path: str | Path, dtype: torch.dtype, *, height: int | None = None, width: int | None = None
) -> DiffusersGenerator:
    """A generator from a folder's configurations alone, for its `sizes`: it can make no picture.

    Args:
        path: a folder in diffusers' layout, of which the JSON files are read.
        dtype: of the weights that it doesn't have.
        height, width: in pixels; None for 512.

    Raises:
        GeneratorError: nothing is found there, or the pipeline's class is not supported.
    """
    source = str(Path(path).expanduser())
    try:
        config: Any = DiffusionPipeline.load_config(source, local_files_only=True)
        architecture = _architecture(str(config.get("_class_name")))
        with quiet_loading():
            return from_configurations(architecture, source, dtype, GeneratorSettings(height, width))
    except (OSError, KeyError, ValueError) as error:
        raise GeneratorError(
            f"Could not read a generator's configuration from {path}: {error} Expected a folder in diffusers' layout, "
            "with model_index.json in it."
        ) from error


def _architecture(pipeline_class: str) -> Architecture:
    known = {name: architecture for architecture in ARCHITECTURES for name in architecture.pipelines}
    if pipeline_class not in known:
        raise GeneratorError(
            f"Expected one of the supported pipelines ({', '.join(known)}), got {pipeline_class}. "
            "docs/architecture.md says how to add an architecture."
        )
    return known[pipeline_class]


def _check_prompts(prompts: Any) -> tuple[str, ...]:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) == 0:
        raise GeneratorError(f"Expected a list of at least one prompt, got {prompts!r}.")
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise GeneratorError(f"Expected each prompt as a text, got {wrong[0]!r}.")
    return tuple(prompts)
