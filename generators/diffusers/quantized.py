"""A network whose folder, or pipeline in memory, holds weights of few bits already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...core.errors import GeneratorError
from ...core.quantization import check_quantization, is_bitsandbytes, take_over


def load_quantized(
    model: Any, source: str, config: Mapping[str, Any], wanted: str | None, device: torch.device, **options: Any
) -> Any:
    """The network of a quantised folder, by diffusers, with our layers in place of bitsandbytes'.

    Args:
        model: its class.
        config: the folder's quantization_config.
        wanted: what the user asks for; None is whatever the folder holds.
        device: where diffusers loads it, a GPU.
        options: of `from_pretrained`.

    Raises:
        GeneratorError: it is quantised otherwise than by bitsandbytes, or than the user wants, or not on a GPU.
    """
    kind = kind_of(config)
    check_quantization(kind, (kind,), GeneratorError)
    if wanted not in (None, kind):
        raise GeneratorError(
            f"Expected weights that can be brought to {wanted}, but the network in {source} is stored in {kind} "
            "already. Leave quantization out, or take a folder of whole weights."
        )
    try:
        network = model.from_pretrained(source, device_map={"": device}, **options)
    except RuntimeError as error:
        raise GeneratorError(f"Could not load the {kind} network in {source}: {error}") from error
    take_over(network, GeneratorError)
    return network


def kind_of(config: Any) -> str:
    """ "8bit" or "4bit", from a quantization_config.

    Raises:
        GeneratorError: it is another library's than bitsandbytes.
    """
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    if values.get("quant_method") == "bitsandbytes" and values.get("load_in_8bit"):
        return "8bit"
    if values.get("quant_method") == "bitsandbytes" and values.get("load_in_4bit"):
        return "4bit"
    raise GeneratorError(
        f"Expected a network in whole numbers or quantised by bitsandbytes, got one by {values.get('quant_method')!r}. "
        "Load the original weights; quantization='fp8', '8bit' or '4bit' makes them smaller."
    )


def quantized_layers(network: nn.Module) -> list[nn.Module]:
    """bitsandbytes' layers in a pipeline's network.

    Raises:
        GeneratorError: the network is quantised by another library.
    """
    config = getattr(getattr(network, "config", None), "quantization_config", None)
    if config:
        kind_of(config)
    return [part for part in network.modules() if is_bitsandbytes(part)]
