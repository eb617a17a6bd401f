"""Where critics lie on the user's disk: `models/LLM`, `models/VLM`, and what extra_model_paths.yaml adds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import folder_paths

from ..core.model_folder import is_other_format, weight_files

KINDS = ("VLM", "LLM")
EXAMPLE_LORAS = Path(__file__).parents[1] / "demo" / "loras"
NONE_FOUND = "(no VLM found: put a model folder into models/VLM)"


def register_folders() -> None:
    """Adds the critics' folders, and one with an example LoRA for the demo models, to those that ComfyUI knows."""
    folder_paths.add_model_folder_path("loras", str(EXAMPLE_LORAS))
    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))


def critic_folders() -> dict[str, Path]:
    """Folders of vision-language models by the name that the user sees, one or two levels below each root."""
    found: dict[str, Path] = {}
    for root in _roots():
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            if is_vlm(_read(config)) and _has_weights(config.parent):
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def critic_names() -> list[str]:
    return list(critic_folders()) or [NONE_FOUND]


def download_target(repository: str) -> Path:
    """Where a model of this Hugging Face id is to lie, so that it is found by the same name afterwards."""
    return Path(folder_paths.get_folder_paths(KINDS[0])[0]) / repository


def _roots() -> list[Path]:
    known = folder_paths.folder_names_and_paths
    return [Path(path) for kind in KINDS if kind in known for path in folder_paths.get_folder_paths(kind)]


def is_vlm(settings: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model that sees and writes; CLIP and the like only see."""
    architectures = settings.get("architectures") or [""]
    writes = str(architectures[0]).endswith(("ForConditionalGeneration", "ForImageTextToText", "ForVision2Seq"))
    return "vision_config" in settings and writes


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return bool(weight_files(folder))
    return all((folder / name).is_file() for name in set(_read(index).get("weight_map", {}).values()))


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def fingerprint(folder: Path) -> str:
    """Changes when a file of the folder that transformers reads does."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and not is_other_format(p.name)]
    rows = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return f"{folder}:{rows}"
