"""Files: atomic, without pickle, with everything it takes to make the LoRA again."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe
from PIL import Image
from torch import nn

from dual_process import overlays
from dual_process.core import tensor_file
from dual_process.core.fingerprint import weights_sha256
from dual_process.core.tensor_file import read_tensors, write_tensors
from dual_process.distillation import LoraFileError, Question, Recipe, distill
from dual_process.distillation.checkpoint import pack_optimizer, unpack_optimizer
from dual_process.distillation.draws import draw_batch
from dual_process.distillation.report import running_mean, save_before_after, save_progress, write_json
from dual_process.distillation.result import mean_probability

ONES = {"x": torch.ones(3)}


def test_round_trip(tmp_path):
    path = write_tensors(tmp_path / "new" / "f.safetensors", ONES, {"a": "b"})
    tensors, metadata = read_tensors(path)
    assert torch.equal(tensors["x"], ONES["x"])
    assert metadata["a"] == "b"


def test_any_tensor_and_the_usual_permissions(tmp_path):
    strided = torch.arange(6.0).reshape(2, 3).T
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    path = write_tensors(tmp_path / "f.safetensors", {"strided": strided, "half": half}, {})
    tensors, _ = read_tensors(path)
    assert torch.equal(tensors["strided"], strided)
    assert tensors["half"].dtype == torch.bfloat16
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_process_wide_mask_is_left_alone(tmp_path, monkeypatch):
    def set_mask(mask):
        pytest.fail("another thread would make its files with this mask")

    monkeypatch.setattr(os, "umask", set_mask)
    path = write_tensors(tmp_path / "f.safetensors", ONES, {})
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_every_length_of_header_is_read(tmp_path):
    first_bytes = set()
    for length in range(0, 520, 4):
        path = write_tensors(tmp_path / "f.safetensors", ONES, {"a": "b" * length})
        first_bytes.add(path.read_bytes()[0])
        assert read_tensors(path)[1] == {"a": "b" * length}
    assert 0x80 in first_bytes  # a pickle's first byte, too


def test_a_header_that_begins_as_a_zip_file_is_read(tmp_path):
    for length in range(19150, 19280):
        path = write_tensors(tmp_path / "f.safetensors", ONES, {"a": "b" * length})
        if path.read_bytes()[:2] == b"PK":
            assert torch.equal(read_tensors(path)[0]["x"], ONES["x"])
            return
    pytest.fail("no header of that length")


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoraFileError, match=r"file/f\.safetensors"):
        write_tensors(tmp_path / "file" / "f.safetensors", ONES, {})
    with pytest.raises(LoraFileError, match="folder"):
        write_tensors(tmp_path / "folder", ONES, {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write and read everywhere")
def test_places_without_permission(tmp_path):
    path = write_tensors(tmp_path / "f.safetensors", ONES, {})
    path.chmod(0)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LoraFileError, match=r"f\.safetensors.*Permission denied"):
            write_tensors(path, ONES, {})
        with pytest.raises(LoraFileError, match=r"f\.safetensors"):
            read_tensors(path)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_tensors(tmp_path / "f.safetensors", ONES, {})
    before = path.read_bytes()

    def full(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(LoraFileError, match=r"f\.safetensors.*No space left.*still in memory"):
        write_tensors(path, {"x": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.safetensors"]


def test_what_is_not_whole_or_not_safe_is_refused(tmp_path):
    whole = write_tensors(tmp_path / "f.safetensors", {"x": torch.ones(500)}, {})
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    torch.save(ONES, tmp_path / "zip.pt")
    torch.save(ONES, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name, message in (
        ("cut.safetensors", "truncated"),
        ("zip.pt", "pickled"),
        ("legacy.pt", "pickled"),
        ("none.safetensors", "found none"),
    ):
        with pytest.raises(LoraFileError, match=message):
            read_tensors(tmp_path / name)


def test_optimizer_state_round_trip():
    def optimizer(parameter):
        return torch.optim.AdamW([parameter], lr=0.1)

    one, two = (nn.Parameter(torch.ones(2)) for _ in range(2))
    first, second = optimizer(one), optimizer(two)
    one.grad = torch.tensor([1.0, -2.0])
    first.step()
    two.data.copy_(one.data)
    unpack_optimizer(second, *pack_optimizer(first))
    one.grad, two.grad = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])
    first.step()
    second.step()
    assert torch.equal(one, two)


def test_the_metadata_makes_the_lora_again(tmp_path):
    settings = recipe(Question("Is it?", overlay=overlays.horizon(0.3)), prompts=("sea",))
    result = distill(FakeGenerator(), FakeCritic(), settings)
    _, metadata = read_tensors(result.save(tmp_path / "sea line.safetensors"))
    assert Recipe.from_dict(json.loads(metadata["dual_process.recipe"]), overlays.build) == settings
    assert json.loads(metadata["dual_process.base_model"]) == FakeGenerator().info.to_dict()
    assert json.loads(metadata["dual_process.critics"]) == {"default": FakeCritic().info.to_dict()}
    assert json.loads(metadata["dual_process.history"])["steps"] == 6
    assert metadata["modelspec.title"] == "sea line"
    assert metadata["modelspec.architecture"] == "fake-flow/lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert "Is it?" in metadata["modelspec.description"]
    assert (metadata["ss_network_dim"], float(metadata["ss_network_alpha"])) == ("2", 4.0)


def test_the_file_holds_the_lora_as_trained(tmp_path):
    result = distill(FakeGenerator(), FakeCritic(), recipe())
    tensors, _ = read_tensors(result.save(tmp_path / "f.safetensors"))
    assert tensors.keys() == {"layer.lora_A", "layer.lora_B", "layer.alpha"}
    assert all(torch.equal(tensors[name], value) for name, value in result.lora_state_dict().items())
    assert tensors["layer.alpha"] == 4.0
    assert tensors["layer.lora_B"].abs().max() > 0


def test_metadata_is_strict_json_even_if_a_question_was_not_asked():
    settings = recipe(Question("a"), Question("b", prompts=(1,)), batch_size=1, train_steps=1)
    seed = next(s for s in range(20) if draw_batch(replace(settings, seed=s), 0, 0, 2, 3).prompt_indices == (0,))
    metadata = distill(FakeGenerator(), FakeCritic(), replace(settings, seed=seed)).metadata("t")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads(metadata["dual_process.history"], parse_constant=refuse)
    assert summary["last_p_answer"][1] is None


def test_resumed_metadata_is_equal_but_for_times(tmp_path):
    def metadata(result):
        values = dict(result.metadata("t"))
        values.pop("modelspec.date")
        values["dual_process.history"] = json.dumps(
            {k: v for k, v in json.loads(values["dual_process.history"]).items() if k != "seconds"}
        )
        return values

    seen = []
    part = distill(FakeGenerator(), FakeCritic(), recipe(), lambda r, _: seen.append(r), lambda: len(seen) == 2)
    path = part.save_checkpoint(tmp_path / "c.safetensors")
    resumed = distill(FakeGenerator(), FakeCritic(), recipe(), resume_from=path)
    assert metadata(resumed) == metadata(distill(FakeGenerator(), FakeCritic(), recipe()))


def test_fingerprints_tell_models_apart():
    base = weights_sha256([("w", torch.arange(5000.0))])
    assert base == weights_sha256([("w", torch.arange(5000.0))])
    others = [
        ("v", torch.arange(5000.0)),
        ("w", torch.arange(5000.0).reshape(50, 100)),
        ("w", torch.arange(5000.0).double()),
        ("w", torch.arange(5000.0) + 1),
    ]
    assert base not in {weights_sha256([other]) for other in others}


def test_pictures_and_plots(tmp_path):
    result = distill(FakeGenerator(), FakeCritic(), recipe())
    broken = replace(result.history[0], p_answer=(float("nan"),))
    save_progress(tmp_path / "p.png", [broken, *result.history[1:]], result.recipe.questions)
    save_before_after(tmp_path / "b.png", torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8), ["a", "b", "c"])
    assert Image.open(tmp_path / "p.png").size[0] > 800
    picture = Image.open(tmp_path / "b.png").convert("RGB")
    width, height = picture.size
    assert picture.getpixel((width // 2, height // 3)) == (0, 0, 0)
    assert picture.getpixel((width // 2, height * 3 // 4)) == (255, 255, 255)


def test_the_true_pictures_are_the_third_row(tmp_path):
    black, grey, white = (torch.full((3, 3, 8, 8), value) for value in (0.0, 0.5, 1.0))
    save_before_after(tmp_path / "b.png", black, white, ["a", "b", "c"], true=grey)
    picture = Image.open(tmp_path / "b.png").convert("RGB")
    width, height = picture.size
    rows = [picture.getpixel((width // 2, height * part // 12))[0] for part in (3, 6, 10)]
    assert rows == [0, 255, pytest.approx(127.5, abs=1)]


def test_many_pictures_stand_in_bands_of_eight(tmp_path):
    shades = torch.linspace(0, 1, 10)[:, None, None, None].expand(-1, 3, 8, 8)
    save_before_after(tmp_path / "b.png", shades, 1 - shades)
    picture = Image.open(tmp_path / "b.png").convert("L")
    width, height = picture.size
    second = [picture.getpixel((width // 10, height * part // 8)) for part in (5, 7)]  # of the ninth picture
    assert second == [pytest.approx(255 * 8 / 9, abs=1), pytest.approx(255 / 9, abs=1)]
    assert picture.getpixel((width * 9 // 10, height * 5 // 8)) == 255  # no picture


def test_mean_probability_is_that_of_probabilities_of_those_asked():
    log_likelihood = torch.tensor([[0.5, 0.9], [0.1, math.nan]]).log()
    assert mean_probability(log_likelihood) == pytest.approx((0.3, 0.9))


def test_running_mean_passes_over_nan():
    assert running_mean([1.0, float("nan"), 3.0], window=2) == [1.0, 1.0, 3.0]


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "r.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": "x"}})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": None, "b": [1.0, None], "c": {"d": "x"}}
