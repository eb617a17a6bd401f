"""The import rules of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "cli",
    "comfy_host",
    "core",
    "distillation",
    "critics",
    "overlays",
    "generators",
    "demo",
    "evaluation",
    "nodes",
    "painters",
    "process",
)
COMFY = {  # modules at the root of ComfyUI; its own "nodes" is not ours
    *("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "folder_paths", "server", "execution"),
    *("app", "latent_preview", "node_helpers", "nodes"),
}

ROOMS = {  # what each may import of ours besides itself; the folders above them may import all but the nodes
    "comfy_host": ("core",),
    "core": (),
    "distillation": ("core",),
    "critics": ("core",),
    "overlays": ("core",),
    "generators": ("core",),
    "painters": ("core", "process"),
    "process": ("core",),
}


def imports(source: str, parts: tuple[str, ...]):
    """Absolute dotted names of everything that a module imports; ours begin with "dual_process"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield ".".join([*base, alias.name]), True


def violations(source: str, path: str) -> list[str]:
    """What a module at `path` (within the pack) imports against the rules."""
    parts = ("dual_process", *Path(path).with_suffix("").parts)
    folder = parts[1] if len(parts) > 2 else ""
    is_comfy = folder == "comfy_host" or (
        folder in ("generators", "critics", "demo", "painters") and parts[2] == "comfy"
    )
    allows_comfy = folder == "nodes" or is_comfy
    wrong = []
    for name, is_relative in imports(source, parts):
        pieces = name.split(".")
        if pieces[0] in COMFY and not allows_comfy:
            wrong.append(f"{path} imports ComfyUI's {name}")
        if pieces[0] != "dual_process":
            continue
        if not is_relative:
            wrong.append(f"{path} imports {name} absolutely")
        target = pieces[1] if len(pieces) > 1 else ""
        if target == "nodes" and folder != "nodes" and path != "__init__.py":
            wrong.append(f"{path} imports the nodes")
        if folder in ROOMS and target not in (folder, *ROOMS[folder], *(["comfy_host"] if is_comfy else [])):
            wrong.append(f"{path} imports {name}")
    return wrong


def modules():
    return [*sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.py")), *sorted(ROOT.glob("*.py"))]


@pytest.mark.parametrize("module", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_rules(module):
    assert violations(module.read_text(), str(module.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/files.py", "from ..distillation import Recipe"),
        ("core/files.py", "from .. import overlays"),
        ("distillation/loop.py", "from ..critics import load_critic"),
        ("critics/a.py", "from ..overlays import horizon"),
        ("overlays/a.py", "from ..distillation import Recipe"),
        ("generators/a.py", "import comfy.sd"),
        ("generators/a.py", "from dual_process.generators import noise"),
        ("generators/a.py", "def load():\n    import nodes"),
        ("generators/a.py", "from .. import critics"),
        ("generators/diffusers/a.py", "from ...comfy_host import weights"),
        ("generators/diffusers/a.py", "import comfy.sd"),
        ("overlays/comfy/a.py", "import folder_paths"),
        ("distillation/comfy/a.py", "import comfy.utils"),
        ("comfy_host/a.py", "from ..generators import load_generator"),
        ("distillation/a.py", "from .. import overlays"),
        ("distillation/a.py", "from ..evaluation.measures import psnr"),
        ("evaluation/a.py", "from .. import nodes"),
        ("painters/diffusers/a.py", "import comfy.sample"),
        ("painters/comfy/a.py", "from ...generators import load_generator"),
        ("process/a.py", "from ..painters import diffusers"),
        ("__init__.py", "import comfy"),
        ("cli/train.py", "from ..nodes import distill"),
        ("demo/training/a.py", "from ...nodes.critic import Load"),
    ],
)
def test_planted_violations_are_found(path, source):
    assert violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("generators/comfy/generator.py", "import comfy.sd"),
        ("critics/comfy/a.py", "from ...comfy_host.weights import placed"),
        ("overlays/a.py", "from ..core.errors import OverlayError"),
        ("demo/training/a.py", "from ... import overlays"),
        ("nodes/a.py", "from ..distillation import Recipe"),
        ("nodes/a.py", "import comfy.utils"),
        ("painters/comfy/a.py", "import comfy.sample"),
        ("painters/comfy/a.py", "from ...comfy_host.models import file_name"),
        ("painters/comfy/a.py", "from ...process.states import Region"),
        ("generators/a.py", "from ..core.tensor_file import read_tensors"),
        ("critics/__init__.py", "from .loading import load"),
        ("evaluation/a.py", "from ..distillation import Critic"),
        ("__init__.py", "from .nodes import NODES"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(source, path) == []
