"""Critics in ComfyUI whose weights come to the device while they work, as a whole or block by block."""

from __future__ import annotations

import gc

import pytest
import torch
from dynamic import dynamic_vram, load_as_comfyui_does, memory, places
from pretended import PretendedDevice
from tiny_clips import build_qwen

from dual_process.core.errors import CriticError
from dual_process.core.streaming import blocks_of
from dual_process.critics import TransformersCritic

pytestmark = pytest.mark.comfyui


@pytest.fixture
def managed(comfy, qwen_reference):
    from dual_process.critics.comfy.managed import ManagedCritic

    def make(**options):
        model = build_qwen().requires_grad_(False).eval()
        return ManagedCritic(
            TransformersCritic(model, qwen_reference.processor, "tiny", gradient_checkpointing=True), **options
        )

    return make


def judge(critic, images, questions):
    """Scores, their gradient, and a reply."""
    leaf = images[:1].clone().requires_grad_()
    with critic.resident():
        scores = critic.log_likelihood(leaf, questions)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach(), gradient, critic.answer(images[:1], "What is it?", 3)


def assert_same(found, wanted):
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    assert found[2] == wanted[2]


def parameters(patcher):
    return [(name, id(p), p.data_ptr(), p.is_inference()) for name, p in patcher.model.named_parameters()]


def pretend_clip(critic, monkeypatch):
    model = critic._model
    with torch.inference_mode(False), critic._borrowed.in_force():
        named = {f"block {i}": [block] for i, block in enumerate(critic._family.blocks(model))}
        return PretendedDevice({"rest": [model], **named}, monkeypatch)


@pytest.mark.parametrize("offload", [True, "blocks"])
def test_a_critic_from_clip(make_critic, qwen, images, questions, monkeypatch, offload):
    import comfy.model_management as management

    wanted = judge(make_critic(qwen), images, questions)
    critic = make_critic(qwen, offload=offload)
    device = pretend_clip(critic, monkeypatch)
    before = parameters(qwen.patcher)
    for _ in range(2):
        assert_same(judge(critic, images, questions), wanted)
        assert device.is_empty()
    assert qwen.patcher not in management.loaded_models()
    assert parameters(qwen.patcher) == before
    assert device.most_blocks == (2 if offload == "blocks" else len(critic._family.blocks(critic._model)))


def test_a_hybrid_critic_from_clip(make_critic, qwen35, images, questions, monkeypatch):
    wanted = judge(make_critic(qwen35), images, questions)
    critic = make_critic(qwen35, offload="blocks")
    device = pretend_clip(critic, monkeypatch)
    assert_same(judge(critic, images, questions), wanted)
    assert device.is_empty()
    assert device.most_blocks == 2


def test_a_lora_on_the_clip_is_in_force(make_critic, qwen, images, questions, monkeypatch):
    patched = qwen.clone()
    name = "qwen3vl_8b.transformer.model.layers.0.mlp.down_proj.weight"
    weight = dict(qwen.patcher.model.named_parameters())[name]
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.2
    patched.patcher.add_patches({name: ("diff", (change,))})
    plain, wanted = (judge(make_critic(clip), images, questions) for clip in (qwen, patched))
    assert float((plain[0] - wanted[0]).abs().max()) > 1e-4
    assert_same(judge(make_critic(patched, offload="blocks"), images, questions), wanted)


@pytest.mark.parametrize("offload", [True, "blocks"])
def test_a_critic_of_transformers(managed, images, questions, monkeypatch, offload):
    import comfy.model_management as management

    wanted = judge(managed(), images, questions)
    critic = managed(offload=offload)
    model = critic._critic.model
    blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(model))}
    device = PretendedDevice({"rest": [model], **blocks}, monkeypatch)
    for _ in range(2):
        assert_same(judge(critic, images, questions), wanted)
        assert device.is_empty()
    assert critic.patcher not in management.loaded_models()
    assert device.most_blocks == (2 if offload == "blocks" else len(blocks))


def test_a_critic_is_told_how_to_lie_for_one_run(managed, make_critic, qwen, images, questions, monkeypatch):
    import comfy.model_management as management

    for critic in (managed(), make_critic(qwen)):
        wanted = judge(critic, images, questions)
        assert critic.patcher in management.loaded_models()
        with critic.arranged(offload="blocks", gradient_checkpointing=True):
            assert critic.offload == "blocks"
            assert_same(judge(critic, images, questions), wanted)
            assert critic.patcher not in management.loaded_models()
            with critic.arranged(offload=False):
                assert_same(judge(critic, images, questions), wanted)
                assert critic.patcher in management.loaded_models()
        assert critic.offload is False
        refused = pytest.raises(CriticError, match="offload as True, False or 'blocks', got 'layers'")
        with refused, critic.arranged(offload="layers"):
            pass
        assert critic.offload is False
        del critic
        gc.collect()


def test_a_critic_of_transformers_alone(qwen_reference, images, questions):
    critic = TransformersCritic(qwen_reference.model, qwen_reference.processor, "tiny")
    wanted = judge(critic, images, questions)
    with critic.arranged(offload="blocks", gradient_checkpointing=True):
        assert (critic.offload, critic.gradient_checkpointing) == ("blocks", True)
        assert_same(judge(critic, images, questions), wanted)
        assert critic._stream is not None
    assert (critic.offload, critic.gradient_checkpointing, critic._stream) == (False, False, None)


def test_weights_of_another_format_stay_with_comfyui(make_critic, qwen, images, questions, caplog):
    import comfy.model_patcher

    class OwnPatcher(comfy.model_patcher.ModelPatcher):
        pass

    wanted = judge(make_critic(qwen), images, questions)
    qwen.patcher.__class__ = OwnPatcher
    critic = make_critic(qwen, offload="blocks")
    assert critic.offload is False
    assert "loaded by ComfyUI: its weights are loaded by a OwnPatcher in a way of its own" in caplog.text
    assert_same(judge(critic, images, questions), wanted)


@pytest.mark.parametrize("offload", [False, "blocks"])
def test_a_clip_that_comfyui_streams(make_critic, load_qwen, images, questions, monkeypatch, offload):
    """By ComfyUI's own patcher for dynamic VRAM, on the CPU."""
    import comfy.model_management as management
    import comfy.utils
    from safetensors.torch import load_file

    wanted = judge(make_critic(load_qwen()), images, questions)
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda path, **_: (load_file(path), {}))  # maps it into memory
    with dynamic_vram(monkeypatch):
        clip = load_qwen()
        assert clip.patcher.is_dynamic()
        load_as_comfyui_does(clip.patcher)
        with torch.inference_mode():
            management.unload_all_models()
        before, streamed = memory(clip.patcher.model), len(places(clip.patcher.model))
        load_as_comfyui_does(clip.patcher)
        critic = make_critic(clip, offload=offload)
        assert critic.offload == (offload or True)
        device = pretend_clip(critic, monkeypatch)
        assert_same(judge(critic, images, questions), wanted)
        assert device.is_empty()
        with critic.arranged(offload=False):
            assert not places(clip.patcher.model)
            came = len(device.came())
            assert_same(judge(critic, images, questions), wanted)
            assert len(device.came()) == came  # it stays
        assert device.is_empty()
        assert memory(clip.patcher.model) == before
        assert len(places(clip.patcher.model)) == streamed > 0
