"""Finds, checks and loads a model folder as transformers writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    GenerationConfig,
    PixtralProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.import_utils import is_torchvision_available

from ..core.errors import CriticError
from ..core.model_folder import OTHER_FORMATS, check_shards, weight_files
from ..core.quantization import check_quantization, take_over
from .preprocessing import keeps_gradient, single_tile
from .prompting import takes_suffix

NO_GRADIENT = (
    "The gradient from the critic's answer to the image needs torchvision: without it transformers prepares images "
    "with Pillow, which has no gradient. Install the torchvision release that belongs to your torch."
)
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.tiktoken", "*.txt")
VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken")


def find_folder(path: str | Path, download: bool) -> Path:
    """A local folder, or a Hugging Face id's: what was downloaded before, or with `download` the newest."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(
            snapshot_download(
                str(path),
                allow_patterns=[*MODEL_FILES, "*.py"],
                ignore_patterns=list(OTHER_FORMATS),
                local_files_only=not download,
            )
        )
    except (OSError, ValueError) as error:  # huggingface_hub's own errors derive from these
        raise CriticError(
            f"Expected the folder of a vision-language model, but there is no folder {str(path)!r}. If it is a Hugging "
            "Face id such as 'Qwen/Qwen2.5-VL-3B-Instruct', pass download=True to fetch it "
            f"({'this failed' if download else 'nothing is downloaded unasked'}: {type(error).__name__})."
        ) from error


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    chosen: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise CriticError(f"Expected a float dtype such as 'bfloat16' or 'float32', got {dtype!r}.")
    return chosen


def load_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """The folder's processor, with one tile an image.

    Raises:
        CriticError: it has no processor, image processor, tokenizer or chat template, or carries no gradient.
    """
    if not is_torchvision_available():
        raise CriticError(NO_GRADIENT)
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):  # transformers would make an empty one
        raise CriticError(f"Found no tokenizer in {folder}; download the model's tokenizer.json there.")
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise CriticError(f"Could not load an image processor and tokenizer from {folder}: {error}") from error
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise CriticError(
                f"Expected a processor with an {part.replace('_', ' ')} in {folder}, got {type(processor).__name__}. "
                "Download the model's preprocessor_config.json, processor_config.json and tokenizer files too."
            )
    if getattr(processor, "chat_template", None) is None and not takes_suffix(processor):
        raise CriticError(
            f"The model in {folder} has no chat template, so it cannot be asked a question. Use its instruction-tuned "
            "(-it, -Instruct) version, or download its chat_template.jinja or chat_template.json too."
        )
    if not keeps_gradient(processor.image_processor):  # transformers resizes by Lanczos with Pillow if it may choose
        processor.image_processor = AutoImageProcessor.from_pretrained(
            folder, backend="torchvision", trust_remote_code=trust_remote_code, local_files_only=True
        )
    if isinstance(processor, PixtralProcessor):  # in its own call it gives the image processor the merged patches' size
        side = processor.patch_size * processor.spatial_merge_size
        processor.image_processor.patch_size = {"height": side, "width": side}
    for name, value in single_tile(processor.image_processor).items():
        setattr(processor.image_processor, name, value)  # Idefics2's processor reads it here
    if not keeps_gradient(processor.image_processor):
        raise CriticError(f"{NO_GRADIENT} The image processor is {type(processor.image_processor).__name__}.")
    return processor


def check_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Raises CriticError unless the folder holds the weights of an image-text-to-text model."""
    if not (folder / "config.json").is_file():
        raise CriticError(f"Expected a model folder with a config.json, found none in {folder}.")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CriticError(f"Could not read the model's config.json in {folder}: {error}") from error
    remote = trust_remote_code and "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not remote:
        raise CriticError(
            f"Expected a model that sees images and answers in text, but {folder} holds a {config.model_type!r} model, "
            "which transformers knows as text-only or as something else. Choose a vision-language model."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise CriticError(f"The {config.model_type!r} model in {folder} is an encoder-decoder; use a decoder-only one.")
    if not weight_files(folder):
        raise CriticError(f"Found no weights (*.safetensors) in {folder}; download the model's weight files there.")
    check_shards(folder, CriticError)


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, quantization: str | None, trust_remote_code: bool = False
) -> Any:
    """The frozen model in eval mode on its device, with our layers in place of bitsandbytes'.

    Raises:
        CriticError: weights that are missing or do not fit, or a quantisation that is not at hand.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if quantization is not None:
        # Each weight is packed as it is read, so that the whole ones are never there together.
        options |= {"quantization_config": _bitsandbytes(quantization, dtype), "device_map": {"": device}}
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        if broken := [file.name for file in weight_files(folder) if not _is_readable(file)]:
            raise CriticError(
                f"The weight files {', '.join(broken)} in {folder} are broken ({error}): download them again."
            ) from error
        raise CriticError(f"Could not load the model in {folder}: {error}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers only warns and fills in random numbers
        names = sorted(report["missing_keys"])
        raise CriticError(f"The weights in {folder} lack {len(names)} tensors, {names[0]} first; download them again.")
    take_over(model, CriticError)
    if quantization is None:
        model.to(device)
    model.generation_config = _greedy(model.generation_config)
    return model.eval().requires_grad_(False)


def empty_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The folder's model on the device "meta": its layers without weights."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CriticError(f"Could not read the model's config.json in {folder}: {error}") from error
    return model.eval().requires_grad_(False)


def _is_readable(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    check_quantization(quantization, ("8bit", "4bit"), CriticError)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _greedy(config: GenerationConfig) -> GenerationConfig:
    """Only what ends a reply: models ship sampling settings and repetition penalties that would alter the argmax."""
    eos = config.eos_token_id
    first = eos[0] if isinstance(eos, list) else eos
    pad = first if config.pad_token_id is None else config.pad_token_id
    return GenerationConfig(eos_token_id=eos, pad_token_id=pad, bos_token_id=config.bos_token_id)
