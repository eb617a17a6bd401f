"""Finds ComfyUI for the live tests; `python tests/comfyui.py` installs what they need where it is present."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def folder() -> Path:
    """Where ComfyUI is expected: COMFYUI_PATH, else where comfy-cli puts it."""
    return Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()


def missing() -> str | None:
    """Why the live tests cannot run, None if ComfyUI is there."""
    if (folder() / "main.py").is_file():
        return None
    return f"there is no ComfyUI at {folder()} (set COMFYUI_PATH to its folder)"


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
