"""What a folder needs to become a critic, and what is said where it lacks it."""

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from dual_process.core import quantization
from dual_process.core.errors import CriticError
from dual_process.core.fingerprint import weights_sha256
from dual_process.critics import load_critic, loading


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the Qwen folder to spoil."""
    return shutil.copytree(folders["qwen"], tmp_path / "my-critic")


def test_info_names_the_model_and_its_weights(folders, critics, family):
    model = AutoModelForImageTextToText.from_pretrained(folders[family])
    info = critics[family].info
    assert info.name == family
    assert info.architecture == type(model).__name__
    assert info.dtype == "float32"
    assert info.weights_sha256 == weights_sha256(model.named_parameters())
    assert critics[family].info is info


def test_defaults_fit_the_machine(folder):
    critic = load_critic(str(folder))
    cuda = torch.cuda.is_available()
    assert critic.model.device.type == ("cuda" if cuda else "cpu")
    assert critic.model.dtype == (torch.bfloat16 if cuda else torch.float32)


def test_logging_is_as_before(folder):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_critic(folder, device="cpu")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert logging.getLogger().level == logging.WARNING


def test_loading_is_silent(folder, capfd):
    load_critic(folder, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["nowhere/at/all", "/nowhere", "nobody/no-such-model-here"])
def test_a_missing_folder(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CriticError, match=r"no folder.*download=True"):
        load_critic(path)


@pytest.mark.parametrize("download", [False, True])
def test_a_hub_id_is_fetched_only_when_asked(folder, monkeypatch, download):
    calls = []

    def snapshot(repo, allow_patterns, ignore_patterns, local_files_only):
        calls.append((repo, local_files_only))
        names = ["model.safetensors", "consolidated.safetensors", "consolidated.safetensors.index.json", "config.json"]
        wanted = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        assert list(wanted) == ["model.safetensors", "config.json"]
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    critic = load_critic("some-org/some-model", device="cpu", download=download)
    assert calls == [("some-org/some-model", not download)]
    assert critic.info.name == "some-org/some-model"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "no weights"),
        (["processor_config.json"], "image processor"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
        (["chat_template.jinja"], "no chat template"),
    ],
)
def test_a_missing_part(folder, files, message):
    for file in files:
        (folder / file).unlink()
    with pytest.raises(CriticError, match=message):
        load_critic(folder, device="cpu")


def test_weights_that_lack_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CriticError, match=r"lack 1 tensors, lm_head\.weight first"):
        load_critic(folder, device="cpu")


def test_weights_that_are_broken(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CriticError, match=rf"weight files {shard.name} in .* are broken .* download them again"):
        load_critic(folder, device="cpu")


def test_weights_in_mistrals_own_format_do_not_count(folder):
    (folder / "consolidated.safetensors").write_bytes(b"broken")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(CriticError, match=r"weight files model\.safetensors in .* are broken"):
        load_critic(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CriticError, match="no weights"):
        load_critic(folder, device="cpu")


def test_a_text_only_model(folder):
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    (folder / "model.safetensors").unlink()
    LlamaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(CriticError, match=r"'llama' model.*text-only"):
        load_critic(folder, device="cpu")


def test_torchvision_missing(folder, monkeypatch):
    monkeypatch.setattr(loading, "is_torchvision_available", lambda: False)
    with pytest.raises(CriticError, match=r"needs torchvision.*Install"):
        load_critic(folder, device="cpu")


def test_an_image_processor_without_gradient(folder, monkeypatch):
    original = loading.AutoProcessor.from_pretrained
    pillow = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2)

    def with_pillow(*args, **kwargs):
        processor = original(*args, **kwargs)
        processor.image_processor = pillow
        return processor

    monkeypatch.setattr(loading.AutoProcessor, "from_pretrained", with_pillow)
    monkeypatch.setattr(loading.AutoImageProcessor, "from_pretrained", lambda *args, **kwargs: pillow)
    with pytest.raises(CriticError, match=r"needs torchvision.*Qwen2VLImageProcessorPil"):
        load_critic(folder, device="cpu")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float99"}, "float dtype such as"),
        ({"dtype": torch.int8}, "float dtype such as"),
        ({"device": "toaster"}, "device such as"),
        ({"device": "cuda"}, "torch finds no GPU; use 'cpu'"),
        ({"quantization": "3bit"}, "None, '8bit' or '4bit'"),
    ],
)
def test_settings(folder, settings, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CriticError, match=message):
        load_critic(folder, **{"device": "cpu", **settings})


def test_quantization_without_bitsandbytes(folder, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(CriticError, match="pip install bitsandbytes"):
        load_critic(folder, device="cpu", quantization="4bit")


def test_an_encoder_decoder(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(CriticError, match="decoder-only"):
        load_critic(folder, device="cpu")
