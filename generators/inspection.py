"""What a LoRA file says of itself, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..core.errors import LoraFileError
from .interchange import architecture_of, recognised


def facts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values in the order in which to show them; of a file of another trainer, what its tensors tell."""
    recipe, model, verdict = (_json(metadata, f"dual_process.{key}") for key in ("recipe", "base_model", "verdict"))
    yield "title", metadata.get("modelspec.title", "–")
    for question in recipe.get("questions", []):
        yield _role(question), _question(question)
    if slider := _json(metadata, "dual_process.slider"):
        yield "slider", f"{' … '.join(slider['ends'])}; this is its {slider['part']} part, of two files"
    if verdict:
        yield "verdict", str(verdict.get("verdict", verdict.get("outcome", "–")))
    elif not recipe:
        yield "made by", "another trainer, or without metadata: nothing is known of its aim"
    if model:
        yield "for", _model(model)
        yield "weights", model["weights_sha256"]
    for name, critic in _json(metadata, "dual_process.critics").items():
        yield f"critic {name}", _model(critic)
    if recipe:
        history = _json(metadata, "dual_process.history")
        yield "trained", _training(recipe, history)
        yield "prompts", "; ".join(recipe.get("prompts", [])) or "CONDITIONINGs without texts"
    yield "layers", _layers(tensors, architecture_of(metadata))
    if metadata.get("modelspec.date"):
        yield "made on", metadata["modelspec.date"]


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, "{}"))
    except json.JSONDecodeError as error:
        raise LoraFileError(f"Expected JSON as {key} in the metadata, got something else: {error}.") from error


def _model(info: Mapping[str, str]) -> str:
    return f"{info['name']} ({', '.join(info[key] for key in ('architecture', 'dtype', 'settings') if info.get(key))})"


def _role(question: Mapping[str, Any]) -> str:
    return "keeps" if question.get("role") == "keep" else "controls"


def _question(question: Mapping[str, Any]) -> str:
    overlay = question.get("overlay")
    drawn = f", with {json.dumps(overlay)[:200]}" if overlay else ""
    beside = f", beside {len(question['references'])} pictures" if question.get("references") else ""
    return (
        f"{question['text']} → {question.get('answer', 'Yes')} (weight {question.get('weight', 1.0):g}{drawn}{beside})"
    )


def _training(recipe: Mapping[str, Any], history: Mapping[str, Any]) -> str:
    steps = history.get("steps", recipe.get("train_steps", "?"))
    ended = history.get("stop_reason", "completed")
    rest = [f"{key} {recipe[key]}" for key in ("learning_rate", "batch_size", "seed", "penalties") if key in recipe]
    return ", ".join([f"{steps} steps ({ended})", *rest])


def _layers(tensors: Mapping[str, Tensor], name: str) -> str:
    try:
        file = recognised(tensors, name)
    except LoraFileError as error:
        return f"{len(tensors)} tensors. {error}"
    ranks = sorted({len(layer.down) for layer in file.layers.values()})
    strengths = sorted({round(layer.alpha / len(layer.down), 4) for layer in file.layers.values()})
    return (
        f"{len(file.layers)} of {file.architecture.label}, rank {', '.join(map(str, ranks))}, alpha / rank "
        f"{', '.join(f'{value:g}' for value in strengths)}, key names of {file.format}"
    )
