"""Weights of 8 and 4 bits: the gradient to the image is that of the numbers that the weights stand for."""

import pytest
import torch
from pretended import PretendedDevice
from torch import nn
from torch.nn.functional import cosine_similarity

from dual_process.core.fingerprint import weights_sha256
from dual_process.core.quantization import QuantizedLinear
from dual_process.core.streaming import blocks_of
from dual_process.critics import load_critic

bnb = pytest.importorskip("bitsandbytes")
FAMILY = "qwen"


@pytest.fixture
def pair(folders, request):
    """A quantised critic, and a float32 one with the numbers that its weights stand for."""
    bits = request.param
    quantised = load_critic(folders[FAMILY], device="cpu", dtype="float32", quantization=bits)
    plain = load_critic(folders[FAMILY], device="cpu", dtype="float32")
    count = 0
    for name, layer in quantised.model.named_modules():
        if isinstance(layer, QuantizedLinear):
            target = plain.model.get_submodule(name)
            assert type(target) is nn.Linear
            target.weight.data = layer.values(torch.float32)
            count += 1
    assert count > 10
    return quantised, plain


def judged(critic, images, ask):
    leaf = images.clone().requires_grad_()
    scores = critic.log_likelihood(leaf, [ask("is the picture red ?"), ask("dark ?", "not sure")])
    scores.sum().backward()
    return scores.detach(), leaf.grad


@pytest.mark.parametrize(("pair", "bound"), [("4bit", 1e-4), ("8bit", 0.1)], indirect=["pair"])
def test_gradient_is_that_of_the_numbers(pair, bound, images, ask):
    """8 bits: the activations are rounded to 8 bits as well, the gradient is not."""
    ours, theirs = (judged(critic, images, ask) for critic in pair)
    assert (ours[0] - theirs[0]).abs().max() <= bound * theirs[0].abs().max()
    assert cosine_similarity(ours[1].flatten(), theirs[1].flatten(), dim=0) >= 1 - bound / 10
    assert (ours[1] - theirs[1]).norm() <= 2 * bound * theirs[1].norm()


@pytest.mark.parametrize("pair", ["4bit", "8bit"], indirect=True)
def test_it_is_smaller_and_says_so(pair):
    quantised, plain = (sum(p.numel() * p.element_size() for p in c.model.parameters()) for c in pair)
    assert quantised < 0.8 * plain
    assert pair[0].info.dtype in ("4bit, float32", "8bit, float32")
    assert pair[0].info.weights_sha256 != pair[1].info.weights_sha256


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("offload", [True, "blocks"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_comes_and_goes(folders, family, bits, offload, checkpointing, images, ask, monkeypatch):
    options = {"device": "cpu", "quantization": bits, "gradient_checkpointing": checkpointing}
    wanted = judged(load_critic(folders[family], **options), images, ask)
    critic = load_critic(folders[family], **options, offload=offload)
    assert not any(hasattr(part, "_hf_hook") for part in critic.model.modules())  # which would move inputs
    blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(critic.model))}
    device = PretendedDevice({"rest": [critic.model], **blocks}, monkeypatch)
    assert all(m.scales.isnan().all() for m in critic.model.modules() if isinstance(m, QuantizedLinear))
    for _ in range(2):
        with critic.resident():
            found = judged(critic, images, ask)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    assert device.is_empty()
    assert offload is True or device.most_blocks <= 2


@pytest.fixture(params=[FAMILY, "idefics3"])
def family(request):
    return request.param


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_the_layers_are_those_of_transformers(folders, bits):
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    options = {"load_in_8bit": True} if bits == "8bit" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    theirs = AutoModelForImageTextToText.from_pretrained(
        folders[FAMILY], quantization_config=BitsAndBytesConfig(**options), device_map={"": "cpu"}, dtype=torch.float32
    )
    ours = load_critic(folders[FAMILY], device="cpu", quantization=bits)
    packed = {name for name, part in ours.model.named_modules() if isinstance(part, QuantizedLinear)}
    assert packed == {
        name for name, part in theirs.named_modules() if isinstance(part, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    }
    assert ours.info.weights_sha256 == weights_sha256(theirs.named_parameters())  # in old checkpoints
