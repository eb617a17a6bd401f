"""Makes a FluxPainter from a pipeline, in memory or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, FluxKontextPipeline, FluxPipeline
from safetensors import SafetensorError

from ...core.devices import choose_device
from ...core.errors import GeneratorError
from ...core.model_folder import check_shards
from ...core.quiet import quiet_loading
from .flux import FluxPainter, FluxSettings

PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"


def load_kontext(
    path_or_pipeline: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    offload: bool = False,
    download: bool = False,
    **settings: Any,
) -> FluxPainter:
    """A painter that follows instructions, its own latents as reference: Flux Kontext, or a Flux that has learnt it.

    Args:
        path_or_pipeline: a folder in diffusers' layout, a Hugging Face id, or a FluxKontextPipeline or FluxPipeline,
            whose parts are shared.
        device: None for the GPU if there is one; for a pipeline, None leaves its parts where they are, and another one
            moves them.
        dtype: None for bfloat16 on a GPU and float32 on the CPU; for a pipeline, its own.
        offload: keep the weights in main memory; each part comes to `device` while it works.
        download: allow the network; otherwise only folders and files already downloaded are read.
        settings: of `FluxSettings`.

    Raises:
        GeneratorError: nothing is found there, it is no Flux, a part is missing, or a setting is out of range.
    """
    return _load(FluxKontextPipeline, path_or_pipeline, device, dtype, offload, download, settings)


def load_inpaint(
    path_or_pipeline: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    offload: bool = False,
    download: bool = False,
    **settings: Any,
) -> FluxPainter:
    """A painter that paints regions anew, with any Flux for text to image; otherwise as `load_kontext`."""
    settings = {"guidance": 3.5, **settings}
    return _load(FluxPipeline, path_or_pipeline, device, dtype, offload, download, settings)


def _load(
    kind: Any,
    source: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    offload: bool,
    download: bool,
    settings: dict[str, Any],
) -> FluxPainter:
    made = FluxSettings(**settings)  # before the weights, which may take minutes
    place: torch.device | None = choose_device(device, GeneratorError)
    if isinstance(source, str | Path):
        dtype = dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32)
        source, dtype = _read(kind, source, dtype, download), None
    elif device is None and not offload:
        place = None
    parts = {name: getattr(source, name, None) for name in PARTS}
    if missing := [name for name, part in parts.items() if part is None]:
        raise GeneratorError(
            f"Expected a whole Flux pipeline, got a {type(source).__name__} without {', '.join(missing)}. Load it too."
        )
    if any(hasattr(part, "_hf_hook") for part in parts.values()):
        raise GeneratorError("The pipeline offloads its parts itself: give one that does not, and set offload.")
    pipeline = kind(**parts)
    pipeline.register_to_config(_name_or_path=source.config.get("_name_or_path"))
    pipeline.set_progress_bar_config(disable=True)
    if dtype is not None:
        pipeline.to(dtype=dtype)
    if place is not None:
        pipeline.enable_model_cpu_offload(device=place) if offload else pipeline.to(place)
    return FluxPainter(pipeline, made)


def _read(kind: Any, path: str | Path, dtype: torch.dtype, download: bool) -> Any:
    source = str(Path(path).expanduser()) if Path(path).expanduser().exists() else str(path)
    if Path(source).is_dir():
        check_shards(Path(source), GeneratorError)
    try:
        config: Any = DiffusionPipeline.load_config(source, local_files_only=not download)
        name = str(config["_class_name"])
        if name not in (FluxPipeline.__name__, FluxKontextPipeline.__name__):
            raise GeneratorError(f"Expected a FluxPipeline or FluxKontextPipeline in {path}, got a {name}.")
        with quiet_loading():
            options = {DTYPE: dtype, "use_safetensors": True}  # pickled weights can run code
            return kind.from_pretrained(source, local_files_only=not download, **options)
    except GeneratorError:
        raise
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise GeneratorError(
            f"Could not load a painter from {path}: {error} Expected a folder in diffusers' layout, with "
            "model_index.json in it, or a Hugging Face id together with download=True."
        ) from error
