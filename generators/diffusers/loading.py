"""Makes a DiffusersGenerator from a pipeline, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from ...core.errors import GeneratorError
from ...core.quantization import quantization_of, quantize
from ..architectures.architecture import Architecture, Conditions, Config
from ..settings import GeneratorSettings
from .denoising import EncodedPrompts
from .generator import DiffusersGenerator
from .quantized import load_quantized
from .sharing import share_weights

DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 42) else "torch_dtype"


def from_pipeline(
    architecture: Architecture,
    pipeline: Any,
    prompts: Sequence[str],
    device: torch.device | None,
    dtype: torch.dtype | None,
    settings: GeneratorSettings,
) -> DiffusersGenerator:
    """A generator that shares the pipeline's weights and leaves the pipeline as it is.

    `device` and `dtype` None: the network's own. Others make a copy of the weights, for training only.

    Raises:
        GeneratorError: a text encoder is missing, or the pipeline has offloading hooks.
    """
    _check_whole(architecture, type(pipeline).__name__, pipeline.components)
    theirs = getattr(pipeline, architecture.network)
    place: torch.device = device or theirs.device
    home = torch.device("cpu") if settings.offload else place
    network = share_weights(theirs, home, dtype or theirs.dtype)
    vae = share_weights(pipeline.vae, home, _vae_dtype(pipeline.vae, dtype or pipeline.vae.dtype))
    extra = _own_config(pipeline.config)
    encoded = encode_prompts(architecture, pipeline, prompts, {**network.config, **extra}, place)
    name = Path(str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)).name
    return DiffusersGenerator(architecture, network, vae, pipeline.scheduler, encoded, name, settings, place, extra)


def from_pretrained(
    architecture: Architecture,
    source: str,
    prompts: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    settings: GeneratorSettings,
    quantization: str | None = None,
    **hub: Any,
) -> DiffusersGenerator:
    """A generator from a folder in diffusers' layout, or a Hugging Face id with what `hub` passes to diffusers.

    The text encoders are loaded, used and freed before the network is loaded, so the two never share memory.

    Raises:
        GeneratorError: a part is missing, or the folder's network is quantised otherwise than by bitsandbytes, or than
            `quantization` says.
    """
    own: Any = DiffusionPipeline.load_config(source, **hub)
    _check_whole(architecture, own["_class_name"], {n: v for n, v in own.items() if v != [None, None]})
    kind: Any = getattr(diffusers, own["_class_name"])
    model: Any = getattr(diffusers, own[architecture.network][1])
    extra = _own_config(own)
    config = {**model.load_config(source, subfolder=architecture.network, **hub), **extra}
    options = {DTYPE: dtype, "use_safetensors": True, **hub}  # pickled weights can run code
    encoders = kind.from_pretrained(source, **{architecture.network: None, "vae": None}, **options)
    encoded = encode_prompts(architecture, encoders, prompts, config, device)
    del encoders
    home = torch.device("cpu") if settings.offload else device
    given: dict[str, Any] = dict.fromkeys(architecture.encoders)
    if config.get("quantization_config"):
        given[architecture.network] = load_quantized(
            model,
            source,
            config["quantization_config"],
            quantization,
            device,
            subfolder=architecture.network,
            **options,
        )
    parts = kind.from_pretrained(source, **given, **options)
    network = getattr(parts, architecture.network)
    if quantization is not None and quantization_of(network) is None:
        quantize(network, quantization, device, home, keep=network._keep_in_fp32_modules or ())
    parts.vae.to(_vae_dtype(parts.vae, parts.vae.dtype))
    network, vae = (part.requires_grad_(False).to(home).eval() for part in (network, parts.vae))
    return DiffusersGenerator(
        architecture, network, vae, parts.scheduler, encoded, Path(source).name, settings, device, extra
    )


def from_configurations(
    architecture: Architecture, source: str, dtype: torch.dtype, settings: GeneratorSettings
) -> DiffusersGenerator:
    """A generator whose weights were never loaded: they lie on the device "meta"."""
    own: Any = DiffusionPipeline.load_config(source)
    parts = {}
    for name in (architecture.network, "vae"):
        kind: Any = getattr(diffusers, own[name][1])
        with init_empty_weights(include_buffers=False):
            parts[name] = kind.from_config(kind.load_config(source, subfolder=name)).to(dtype)
    scheduler_class: Any = getattr(diffusers, own["scheduler"][1])
    scheduler = scheduler_class.from_pretrained(source, subfolder="scheduler")
    network, vae = parts[architecture.network], parts["vae"]
    prompts, device = EncodedPrompts((), ()), torch.device("cpu")
    return DiffusersGenerator(
        architecture, network, vae, scheduler, prompts, source, settings, device, _own_config(own)
    )


def _vae_dtype(vae: Any, dtype: torch.dtype) -> torch.dtype:
    """float32 where float16 would overflow, as the VAE's configuration says."""
    return torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast") else dtype


def _check_whole(architecture: Architecture, pipeline: str, parts: Mapping[str, Any]) -> None:
    needed = (*architecture.encoders, architecture.network, "vae")
    if missing := [name for name in needed if parts.get(name) is None]:
        raise GeneratorError(f"Expected a whole {pipeline}, but its {', '.join(missing)} is missing. Load it too.")


def _own_config(config: Any) -> dict[str, Any]:
    """What a pipeline's configuration says beside the names of its parts."""
    return {
        name: value for name, value in config.items() if not (name.startswith("_") or isinstance(value, list | tuple))
    }


@torch.no_grad()
def encode_prompts(
    architecture: Architecture, pipeline: Any, prompts: Sequence[str], config: Config, device: torch.device
) -> EncodedPrompts:
    """Conditions on `device`, by the pipeline's own encoders, one prompt at a time; the empty one for guidance."""

    def encode(text: str) -> Conditions:
        return architecture.encode(pipeline, text, config, device)

    with _visiting([getattr(pipeline, name) for name in architecture.encoders], device):
        guided = architecture.guidance(config).kind == "cfg"
        empty = architecture.empty(encode(""), config) if guided else None
        return EncodedPrompts(tuple(prompts), tuple(map(encode, prompts)), empty)


@contextmanager
def _visiting(parts: Sequence[Any], device: torch.device) -> Iterator[None]:
    """The text encoders are on `device` while entered, and back home afterwards."""
    homes: list[tuple[Any, torch.device]] = [(part, part.device) for part in parts if isinstance(part, nn.Module)]  # type: ignore[misc]
    try:
        for encoder, home in homes:
            if home != device:
                encoder.to(device)
        yield
    finally:
        for encoder, home in homes:
            if encoder.device != home:
                encoder.to(home)
