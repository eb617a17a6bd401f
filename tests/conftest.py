"""Live tests: ComfyUI in this process, and a line that nobody can miss when they did not run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import comfyui
import pytest
from live_server import BROWSER

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes of tests share the cores


def _missing(marker: str) -> str | None:
    reason = comfyui.missing()
    if marker == "browser" and reason is None and shutil.which(BROWSER) is None:
        return f"there is no Chromium at {BROWSER} (apt install chromium)"
    return reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker in ("comfyui", "browser"):
        if reason := _missing(marker):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker in ("comfyui", "browser"):
        if reason := _missing(marker):
            line = f"SKIPPED: the live tests marked '{marker}' did not run, {reason}"
            terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes ComfyUI importable in this process, on the CPU, with a base directory of its own (the value)."""
    base = tmp_path_factory.mktemp("comfyui")
    comfyui.start(base)
    return base
