"""What a trajectory leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from fake_models import SlotPainter, SlotThinker, picture_of, plan

from dual_process.core.errors import ProcessError
from dual_process.process import Settings, inspect, paint
from dual_process.process.files import (
    annotated,
    chats,
    filmstrip,
    load_painting,
    pixels,
    save_chats,
    save_painting,
)


@pytest.fixture
def painting():
    return paint(plan(2), SlotPainter(0.5, spoils={"s1": 0}), SlotThinker(plan(2)), Settings(budget=9), seed=1)


def test_a_folder_brings_back_the_trajectory_and_its_pictures(painting, tmp_path):
    folder = save_painting(painting, tmp_path / "way")
    loaded = load_painting(folder)
    assert loaded.trajectory == painting.trajectory
    assert loaded.canvases.keys() == painting.canvases.keys()
    for name, canvas in loaded.canvases.items():
        assert torch.equal(canvas.picture, painting.canvases[name].picture)
        assert torch.equal(canvas.latent, painting.canvases[name].latent)
    (folder / "step_01.png").unlink()
    with pytest.raises(ProcessError, match=r"picture step_01.png is missing or broken"):
        load_painting(folder)
    with pytest.raises(ProcessError, match=r"folder with a trajectory.json, found none in empty"):
        load_painting(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(ProcessError, match="could not be written into way: "):
        save_painting(painting, tmp_path / "file" / "way")


def test_a_name_from_a_file_leads_nowhere_else(painting, tmp_path):
    folder = save_painting(painting, tmp_path / "way")
    data = json.loads((folder / "trajectory.json").read_text())
    data["steps"][0]["picture"] = "../../secret"
    (folder / "trajectory.json").write_text(json.dumps(data))
    with pytest.raises(ProcessError, match=r"picture secret.png is missing"):
        load_painting(folder)


def test_the_filmstrip_has_a_column_a_step_with_what_was_asked_and_found(painting):
    figure = filmstrip(painting.trajectory, painting.pictures)
    texts = [text.get_text() for cell in figure.axes for text in [*cell.texts, cell.title]]
    for number, step in enumerate(painting.trajectory.steps[1:], start=1):
        what = "draft" if step.stroke == "draft" else step.ins
        assert any(text.startswith(f"{number}. {what}"[:20]) for text in texts)
    assert any(text.startswith("✓ ") for text in texts)
    assert any(text.startswith("✗ ") for text in texts)
    assert any(text.startswith("taken back") for text in texts)
    assert sum("the result" in text for text in texts) == 1


def test_an_inspected_picture_has_its_regions_framed_and_its_facts_below():
    picture = picture_of({0: 1.0})
    drawn = pixels(annotated(picture, plan(), inspect(SlotThinker(), picture, plan())))
    assert drawn.shape[:2] == (1, 3)
    across = drawn.shape[-1]
    assert across == 660
    green = (drawn[0, 1] > drawn[0, 0] + 0.2)[:160]
    red = (drawn[0, 0] > drawn[0, 1] + 0.2)[:160]
    assert green[:, : across // 4 - 4].any()
    assert not green[:, across // 4 + 4 :].any()
    assert red[:, across // 4 + 4 : 3 * across // 4].any()
    assert not (red | green)[:, 3 * across // 4 + 4 :].any()  # no stroke is there


def test_chats_hold_the_plan_each_certain_reading_and_each_mend(painting, tmp_path):
    made = list(chats(painting.trajectory))
    assert json.loads(made[0]["messages"][1]["content"][0]["text"])["facts"][0]["question"] == plan(2).facts[0].question
    pictures = {m["content"][0]["image"] for c in made[1:] for m in c["messages"] if m["content"][0]["type"] == "image"}
    assert pictures <= {f"{name}.png" for name in painting.pictures}
    readings = [r for step in painting.trajectory.steps for r in step.reflection.readings if r.status != "pending"]
    mends = [step for step in painting.trajectory.steps if step.reflection.instruction]
    assert len(made) == 1 + len(readings) + len(mends)
    lines = save_chats(painting.trajectory, tmp_path / "chats.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == made
    assert torch.is_tensor(painting.picture)
