"""The templates' definitions, and that the files in workflows/ are what was made from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from templates import LESSONS, TEMPLATES, applications
from templates.models import DEMO, FLUX_SCHNELL, STROKES

from dual_process.demo import questions
from dual_process.demo.catalogue import CATALOGUE
from dual_process.demo.sliders import SLIDERS
from dual_process.demo.strokes import captions
from dual_process.demo.strokes import questions as strokes_questions
from dual_process.demo.tokenizer import PROMPT_WORDS, critic_tokenizer, prompt_tokenizer
from dual_process.overlays import Range

FOLDER = Path(__file__).parents[2] / "workflows"
APPLICATIONS = [*{application.name: application for application, _ in LESSONS.values()}.values()]
CONTROLS = {
    "horizon": "horizon",
    "palette": "palette",
    "line_weight": "line_weight",
    "relative_depth": "depth",
    "composition": "composition",
    "commonsense": "night",
}
WORLDS = {  # words of prompts, and what the critic has read
    "DualProcessLoadDemoModels": (PROMPT_WORDS, questions.all_texts()),
    "DualProcessLoadDemoStrokes": (captions.PROMPT_WORDS, strokes_questions.all_texts()),
}
CASES = [
    pytest.param(case, size, id=f"{application.name}-{size}")
    for application in APPLICATIONS
    for case, size in ((application.demo, 128), (application.downloaded, 512))
]


def drawn(case):
    """The overlays that its nodes draw: none, one, or both ends of a range."""
    if isinstance(case.overlay, Range):
        return [case.overlay.first, case.overlay.last]
    return [] if case.overlay is None else [case.overlay]


def nodes_of(template):
    return {key: node for column in template.columns.values() for key, node in column.items()}


def test_every_application_has_a_template_for_the_demo_and_one_for_flux():
    for application in APPLICATIONS:
        models = [models for other, models in LESSONS.values() if other is application]
        assert FLUX_SCHNELL in models
        assert (DEMO in models) != (STROKES in models)


@pytest.mark.parametrize("name", LESSONS)
def test_a_template_is_small(name):
    assert len(nodes_of(TEMPLATES[name])) <= (9 if "_demo_" in name else 12)  # beside the note


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda application: application.name)
def test_both_cases_draw_one_kind_of_overlay_and_have_other_wordings(application):
    assert len({*application.downloaded.texts}) == 3
    assert len({*application.demo.texts}) >= 2  # the horizon's critic knows no third
    kinds = [
        [[layer.kind for layer in overlay.layers] for overlay in drawn(case)]
        for case in (application.demo, application.downloaded)
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda application: application.name)
def test_the_demo_is_taught_what_is_measured(application):
    if application is applications.SLIDER:
        recipe = SLIDERS["horizon"]().recipe
        assert application.demo.overlay == recipe.questions[0].overlay
        assert {name: getattr(recipe, name) for name in application.demo.settings} == application.demo.settings
        return
    control = CATALOGUE[CONTROLS.get(application.name, "horizon")].make()
    (asked,) = control.asked
    assert application.demo.texts[0] == asked.text
    assert application.demo.overlay == asked.overlay
    assert {*application.demo.prompts} <= {*control.recipe.prompts}
    assert {*application.demo.held_out} <= {*control.held_out}


@pytest.mark.parametrize("name", [name for name, (_, models) in LESSONS.items() if not models.downloaded])
def test_demo_models_know_every_word(name):
    application, models = LESSONS[name]
    case = application.demo
    words, texts = WORLDS[models.loaders["demo"].type]
    asked, painted = critic_tokenizer(texts), prompt_tokenizer(words, 32)
    assert not any(asked.unk_token_id in asked(text)["input_ids"] for text in case.texts)
    assert not any(painted.unk_token_id in painted(text)["input_ids"] for text in (*case.prompts, *case.held_out))


def test_new_prompts_are_twenty_after_five():
    for case in (applications.NEW_PROMPTS.demo, applications.NEW_PROMPTS.downloaded):
        assert (len({*case.prompts}), len({*case.held_out})) == (5, 20)
        assert not {*case.prompts} & {*case.held_out}


@pytest.mark.comfyui
@pytest.mark.parametrize(("case", "size"), [case for case in CASES if case.values[0].overlay])
def test_the_nodes_draw_the_overlay(nodes, case, size):
    from templates.drawn import overlay_node

    for overlay in drawn(case):
        made = overlay_node(overlay)
        kind = nodes[made.type]
        defaults = {i.id: i.default for i in kind.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        found = kind.execute(**{**defaults, **made.widgets}).args[0]
        grey = torch.full((1, 3, size, size), 0.5)
        torch.testing.assert_close(found.apply(grey), overlay.apply(grey), atol=0.05, rtol=0)


def test_every_definition_has_its_file_and_every_file_its_picture():
    assert {path.stem for path in FOLDER.glob("*.json")} == {*TEMPLATES}
    assert all((FOLDER / f"{name}.jpg").stat().st_size > 1000 for name in TEMPLATES)
    readme = (FOLDER.parent / "README.md").read_text()
    assert all(f"`{name[:3]}" in readme for name in TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_file_is_as_defined(name):
    written = json.loads((FOLDER / f"{name}.json").read_text())["nodes"]
    note = next(node for node in written if node["type"] == "MarkdownNote")
    assert note["widgets_values"][0] == TEMPLATES[name].note
    written.remove(note)
    for node, wanted in zip(written, nodes_of(TEMPLATES[name]).values(), strict=True):
        assert node["type"] == wanted.type
        assert node.get("widgets_values_named", {}).items() >= {**wanted.widgets}.items()
