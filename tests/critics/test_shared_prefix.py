"""Several questions in one sequence against each of them in a row of its own."""

import importlib.util
import sys

import pytest
import torch

from dual_process.critics.shared_prefix import BIDIRECTIONAL_PROMPTS, can_share

IN_ROWS = (*BIDIRECTIONAL_PROMPTS, "qwen3_5")  # each question is a row of its own
RED, LONG = "is the picture red ?", "what color do you see in the picture : red , green , blue ?"


@pytest.fixture
def questions(ask):
    """Of several lengths; one asked twice with other answers; one that is the beginning of another."""
    return [
        ask(RED),
        ask(LONG, "not sure"),
        ask(RED, "No"),
        ask("is the picture red", "No not at the horizon"),
        ask(LONG),
    ]


def judged(critic, images, questions, apart=False):
    leaf = images.clone().requires_grad_()
    calls = [[question] for question in questions] if apart else [questions]
    scores = torch.cat([critic.log_likelihood(leaf, asked) for asked in calls], dim=1)
    weights = torch.linspace(0.5, 1.5, scores.numel()).reshape(scores.shape)
    (scores * weights).sum().backward()
    return scores.detach(), leaf.grad


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=0)
    assert (ours[1] - theirs[1]).norm() <= 1e-4 * theirs[1].norm()


def test_values_and_gradients_are_those_of_single_questions(critic, images, questions, monkeypatch):
    fast = judged(critic, images, questions)
    monkeypatch.setattr(critic, "share_prefix", False)
    assert_same(fast, judged(critic, images, questions))
    assert_same(fast, judged(critic, images, questions, apart=True))


def test_the_image_stands_there_once(critic, images, questions, passed_to_model):
    if critic.model.config.model_type in IN_ROWS:
        pytest.skip("in this family each question is a row of its own")
    given = passed_to_model(critic, lambda: critic.log_likelihood(images, questions))
    alone = passed_to_model(critic, lambda: critic.log_likelihood(images, questions[:1]))
    assert given["pixel_values"].shape == alone["pixel_values"].shape
    assert len(given["input_ids"]) == len(images)
    rows = [critic._encode(q.text, q.answer, (tuple(images.shape[-2:]),)).text_side["input_ids"] for q in questions]
    assert given["input_ids"].shape[1] < sum(row.shape[1] for row in rows)


def test_the_model_is_as_before_afterwards(critic, images, questions):
    before = judged(critic, images, questions[:1])
    implementations = [m.config._attn_implementation for m in critic.model.modules() if hasattr(m, "config")]
    hooks = [len(m._forward_pre_hooks) for m in critic.model.modules()]
    critic.log_likelihood(images, questions)
    assert [m.config._attn_implementation for m in critic.model.modules() if hasattr(m, "config")] == implementations
    assert [len(m._forward_pre_hooks) for m in critic.model.modules()] == hooks
    assert torch.equal(judged(critic, images, questions[:1])[1], before[1])


def test_only_models_with_masks_of_transformers_share(critic, monkeypatch):
    shares = critic.model.config.model_type not in IN_ROWS
    assert can_share(critic.model) == shares
    text = critic.model.config.get_text_config()
    with monkeypatch.context() as change:
        change.setattr(text, "_attn_implementation", "eager")
        assert not can_share(critic.model)
    with monkeypatch.context() as change:
        change.setattr(text, "layer_types", ["linear_attention", "full_attention"], raising=False)
        assert not can_share(critic.model)
    decoder = critic.model.get_decoder()
    decoder.convolution = torch.nn.Conv1d(1, 1, 1)
    try:
        assert not can_share(critic.model)
    finally:
        del decoder.convolution
    assert can_share(critic.model) == shares


def test_gradient_checkpointing_changes_nothing(critic, images, questions, monkeypatch):
    expected = judged(critic, images, questions)
    kept = []
    plain = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with plain:
        critic.log_likelihood(images.clone().requires_grad_(), questions)
    without, kept[:] = sum(kept), []
    monkeypatch.setattr(critic, "gradient_checkpointing", True)
    assert_same(judged(critic, images, questions), expected)
    with plain:
        critic.log_likelihood(images.clone().requires_grad_(), questions)
    assert sum(kept) < without
    assert not any(m.training for m in critic.model.modules())
    assert critic.answer(images, RED) == critic.answer(images, RED)


def test_two_copies_of_the_pack_do_not_get_in_each_others_way(critics, questions, monkeypatch):
    """As ComfyUI's custom node beside the installed package: transformers' registers are global."""
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    before = critics["qwen"].log_likelihood(image, questions)
    spec = importlib.util.find_spec("dual_process.critics.shared_prefix")
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, copy)  # dataclasses look their module up
    spec.loader.exec_module(copy)
    assert torch.equal(critics["qwen"].log_likelihood(image, questions), before)
