"""The greedy reply, against an argmax loop over the unmodified model."""

import pytest

from dual_process.core.errors import CriticError


def test_equals_a_naive_argmax_loop(critic, naive, images):
    replies = critic.answer(images, "is the picture red ?", max_new_tokens=6)
    tokens = [naive.greedy(image, "is the picture red ?", 6) for image in images]
    expected = [text.strip() for text in naive.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    assert replies == expected
    assert any(replies)  # some of these random models end at once


def test_carries_no_gradient_and_leaves_log_likelihood_as_it_was(critic, images, ask):
    questions = [ask("is the picture red ?", "not sure")]
    before = critic.log_likelihood(images, questions)
    leaf = images.clone().requires_grad_()
    critic.answer(leaf, "what color do you see ?", max_new_tokens=2)
    assert leaf.grad is None
    assert (critic.log_likelihood(images, questions) == before).all()


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_needs_room_for_a_token(critics, images, count):
    with pytest.raises(CriticError, match="max_new_tokens of at least 1"):
        critics["qwen"].answer(images, "dark ?", max_new_tokens=count)


def test_needs_a_question(critics, images):
    with pytest.raises(CriticError, match="at least one word"):
        critics["qwen"].answer(images, "  ")
