"""Finds ComfyUI for the live tests; `python tests/comfyui.py` installs what they need where it is present."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
PACK = "dual_process_pack"  # what `load_pack` calls the pack


def folder() -> Path:
    """Where ComfyUI is expected: COMFYUI_PATH, else where comfy-cli puts it."""
    return Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()


def missing() -> str | None:
    """Why the live tests cannot run, None if ComfyUI is there."""
    if (folder() / "main.py").is_file():
        return None
    return f"there is no ComfyUI at {folder()} (set COMFYUI_PATH to its folder)"


def start(base: Path) -> None:
    """Makes ComfyUI importable in this process, on the CPU, with `base` as its base directory."""
    for name in ("custom_nodes", "models/loras", "output", "input", "temp"):
        (base / name).mkdir(parents=True)
    # Before the working directory, whose `nodes/` would hide ComfyUI's nodes.py.
    sys.path.insert(0, str(folder()))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import folder_paths  # noqa: F401  # reads the arguments as it is imported
    finally:
        sys.argv = arguments


def load_pack() -> ModuleType:
    """The pack, loaded as ComfyUI loads a folder of custom_nodes."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[PACK] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install() -> None:
    """Installs ComfyUI's own requirements and the browser driver into this interpreter's environment."""
    if reason := missing():
        print(f"Live tests will be skipped: {reason}.")
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(folder() / "requirements.txt"), "-e", f"{ROOT}[live]"], check=True)
    # torchaudio refuses a torch that was built for another CUDA version, and its releases lag behind torch's.
    if subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True).returncode:
        version = importlib.metadata.version("torchaudio").split("+")[0]
        subprocess.run([*pip, f"torch=={version}", "torchvision", f"torchaudio=={version}"], check=True)


if __name__ == "__main__":
    install()
