"""Where critics lie on the user's disk: `models/LLM`, `models/VLM`, and what extra_model_paths.yaml adds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths

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
            if _is_vlm(config):
                found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def critic_names() -> list[str]:
    return list(critic_folders()) or [NONE_FOUND]


def _roots() -> list[Path]:
    known = folder_paths.folder_names_and_paths
    return [Path(path) for kind in KINDS if kind in known for path in folder_paths.get_folder_paths(kind)]


def _is_vlm(config: Path) -> bool:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and "vision_config" in settings


def fingerprint(folder: Path) -> str:
    """Changes when a file of the folder does."""
    rows = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()]
    return f"{folder}:{rows}"
