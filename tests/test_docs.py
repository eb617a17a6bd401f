"""What the documents say is what the code does."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

from dual_process import overlays
from dual_process.distillation import Anchors, Question, Recipe, Target
from dual_process.distillation.penalties import PENALTIES
from dual_process.distillation.result import VERSION
from dual_process.overlays import KINDS

ROOT = Path(__file__).parents[1]
RECIPE_PAGE = (ROOT / "docs" / "recipe.md").read_text()


def default(field) -> str:
    value = (
        field.default_factory() if field.default is MISSING and field.default_factory is not MISSING else field.default
    )
    if isinstance(value, Anchors):
        return "the table below"
    return "required" if value is MISSING else "–" if value in (None, (), {}) else f"`{value}`"


@pytest.mark.parametrize(
    "field", [f for kind in (Recipe, Question, Anchors, Target) for f in fields(kind)], ids=lambda f: f.name
)
def test_every_setting_is_documented(field):
    assert f"| `{field.name}` | {default(field)} | {field.metadata['help']} |" in RECIPE_PAGE


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=lambda p: p.name)
def test_every_penalty_is_documented(penalty):
    assert f"| `{penalty.name}` | {penalty.help} |" in RECIPE_PAGE


@pytest.mark.parametrize("kind", KINDS)
def test_every_overlay_is_documented(kind):
    assert f'kind = "{kind}"' in RECIPE_PAGE
    for field in fields(KINDS[kind]):
        assert f"| `{field.name}` | {default(field)} | {field.metadata['help']} |" in RECIPE_PAGE


def test_comfyui_managers_requirements_are_the_packages_without_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {d.replace("'", '"') for d in project["dependencies"] if not d.startswith(("torch>", "torchvision>"))}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted
    assert project["version"] == VERSION


def test_the_recipe_of_the_readme_is_valid():
    text = (ROOT / "README.md").read_text().split("```toml")[1].split("```")[0]
    recipe = Recipe.from_dict(tomllib.loads(text), overlays.build)
    assert recipe.questions[0].overlay == overlays.horizon(0.3)


def test_ci_runs_the_readme_test_command():
    command = "pip install -e '.[test]' && python tests/comfyui.py && python -m pytest"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()
