"""Pickled weights, which run what they like when they are opened, are refused unopened wherever weights are read."""

from __future__ import annotations

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from fakes import FakeCritic, FakeGenerator, recipe
from safetensors import safe_open

from dual_process.core.tensor_file import read_tensors
from dual_process.critics import load_critic
from dual_process.demo import WEIGHTS
from dual_process.distillation import CriticError, GeneratorError, LoraFileError, distill
from dual_process.generators import load_generator

KINDS = ("zip", "legacy", "pickle")


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def plant(marker):
    def write(path, kind="zip"):
        with open(path, "wb") as file:
            if kind == "pickle":
                pickle.dump(Planted(marker), file, protocol=0)  # whose first byte tells nothing
            else:
                torch.save({"x": Planted(marker)}, file, _use_new_zipfile_serialization=kind == "zip")
        return path

    return write


@pytest.fixture(autouse=True)
def unopened(marker, monkeypatch):
    def opened(path, *args, **kwargs):
        pytest.fail(f"{path} was opened")

    monkeypatch.setattr(torch, "load", opened)
    yield
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_would_run(plant, marker, kind, monkeypatch):
    monkeypatch.undo()
    path = plant(marker.with_name("x"), kind)
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "read",
    [read_tensors, lambda path: distill(FakeGenerator(), FakeCritic(), recipe(), resume_from=path)],
    ids=["LoRA", "checkpoint"],
)
def test_as_a_lora_and_as_a_checkpoint(plant, tmp_path, kind, read):
    path = plant(tmp_path / "x.safetensors", kind)
    with pytest.raises(LoraFileError, match=r"x\.safetensors is (a pickled PyTorch|not a whole safetensors) file"):
        read(path)


def refused(folder, files, plant, load, error, message, kind="zip"):
    """A copy of a model folder whose first file gives way to a pickle, which has the second one's name."""
    taken, planted = files
    (folder / taken).unlink()
    plant(folder / planted, kind)
    with pytest.raises(error, match=message):
        load(folder)


@pytest.fixture
def critic(tmp_path):
    return shutil.copytree(WEIGHTS / "critic", tmp_path / "critic")


@pytest.fixture
def pipeline(tmp_path):
    return shutil.copytree(WEIGHTS / "pipeline", tmp_path / "pipeline")


load_judge = partial(load_critic, device="cpu")
load_painter = partial(load_generator, prompts=["a sea"], device="cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"no weights \(\*\.safetensors\)"),
        ("model.safetensors", r"model\.safetensors in .* are broken"),
    ],
)
def test_as_a_critics_weights(critic, plant, name, message, kind):
    refused(critic, ("model.safetensors", name), plant, load_judge, CriticError, message, kind)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer", "vae"])
def test_as_a_generators_weights(pipeline, plant, part):
    is_encoder = part.startswith("text_encoder")
    weights = f"{part}/{'model' if is_encoder else 'diffusion_pytorch_model'}.safetensors"
    pickled = f"{part}/{'pytorch_model' if is_encoder else 'diffusion_pytorch_model'}.bin"
    refused(pipeline, (weights, pickled), plant, load_painter, GeneratorError, r"no file named \w*model\.safetensors")
    (pipeline / pickled).rename(pipeline / weights)
    with pytest.raises(GeneratorError, match="Could not load a generator"):
        load_painter(pipeline)


def make_index(weights):
    """The index of a model whose weights all lie in shard.bin."""
    with safe_open(weights, "pt") as file:
        index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), "shard.bin")}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    weights.rename(weights.with_name("decoy.safetensors"))


def test_as_a_shard_that_an_index_names(critic, pipeline, plant):
    message = r"an index there names shard\.bin.*not opened"
    for weights, folder, load, error in (
        ("model.safetensors", critic, load_judge, CriticError),
        ("text_encoder/model.safetensors", pipeline, load_painter, GeneratorError),
    ):
        make_index(folder / weights)
        plant((folder / weights).with_name("shard.bin"))
        with pytest.raises(error, match=message):
            load(folder)
