"""log P(answer), against the unmodified model fed by its own processor."""

import numpy as np
import pytest
import torch
from PIL import Image

from dual_process.critics import load_critic
from dual_process.critics.prompting import encode
from dual_process.critics.shared_prefix import can_share

RED = "is the picture red ?"
LONG = "what color do you see in the picture : red , green , blue ?"


@pytest.mark.parametrize("words", [["Yes"], ["not", "sure"], ["No", "not", "at", "the", "horizon"]])
def test_equals_a_naive_word_by_word_computation(critic, naive, images, ask, words):
    ours = critic.log_likelihood(images, [ask(RED, " ".join(words))])
    expected = [[naive.log_likelihood(image, RED, words)] for image in images]
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [True, False], ids=["one sequence", "rows"])
def test_mixed_lengths_in_one_batch_equal_one_at_a_time(critic, images, ask, monkeypatch, share):
    monkeypatch.setattr(critic, "share_prefix", share)
    questions = [ask(RED), ask(LONG, "not sure"), ask("dark ?", "No not at the horizon"), ask(LONG, "Yes")]
    together = critic.log_likelihood(images, questions)
    apart = [[critic.log_likelihood(image[None], [question]) for question in questions] for image in images]
    assert together.shape == (2, 4)
    torch.testing.assert_close(together, torch.tensor(apart), atol=1e-5, rtol=0)


def test_probabilities_of_one_word_answers_stay_below_one(critic, images, ask):
    split = critic.processor.tokenizer.tokenize
    words = ["Yes", "No", "maybe", "sure", "red", "green", "blue"]
    assert all(len(split(word)) == 1 for word in words)
    total = critic.log_likelihood(images, [ask(RED, word) for word in words]).exp().sum(dim=1)
    assert ((total > 0) & (total < 1)).all()


def test_everything_that_the_processor_returns_reaches_the_model(critic, naive, images, ask, passed_to_model):
    expected = naive.inputs(images[0], naive.prompt(RED))
    given = passed_to_model(critic, lambda: critic.log_likelihood(images[:1], [ask(RED)]))
    assert set(expected) <= set(given)
    for name, value in expected.items():  # one-token answers: the prompt alone is the input
        torch.testing.assert_close(given[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60)], ids=["wide", "tall"])
def test_images_stay_upright(critic, naive, ask, passed_to_model, height, width):
    down, across = np.linspace(0, 255, height)[:, None], np.linspace(255, 0, width)[None]
    pixels = np.stack(np.broadcast_arrays(down, across, 128), axis=-1).astype(np.uint8)  # HWC

    def expected(pixels):
        return naive.inputs(Image.fromarray(pixels), naive.prompt(RED), rescale=True)["pixel_values"]

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255  # BCHW
    given = passed_to_model(critic, lambda: critic.log_likelihood(image, [ask(RED)]))["pixel_values"]
    # Pillow's eight-bit resizing rounds; one grey level is 0.015 after normalising.
    torch.testing.assert_close(given, expected(pixels), atol=0.03, rtol=0)
    for turned in (pixels[::-1], pixels[:, ::-1], pixels.transpose(1, 0, 2)):  # and these are told apart
        other = expected(np.ascontiguousarray(turned))
        assert other.shape != given.shape or (other - given).abs().max() > 0.5


def test_a_space_before_the_answer_is_the_template_s(critics):
    processor = critics["llava"].processor
    answer = encode(processor, RED, "Yes", ((56, 84),)).answer
    assert processor.tokenizer.convert_ids_to_tokens(answer) == ["▁Yes"]  # "ASSISTANT: Yes", not "ASSISTANT:Yes"


def test_the_head_sees_answer_positions_only(critic, images, ask):
    shapes = []
    hook = critic.model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    critic.log_likelihood(images, [ask(RED), ask(LONG, "not sure")])
    hook.remove()
    # All three answer tokens in one row for each of two images, or two in each of four rows.
    assert shapes == [(2, 3) if can_share(critic.model) else (4, 2)]


def test_texts_are_tokenised_once(critic, images, ask, monkeypatch):
    questions = [ask(RED, "maybe")]
    first = critic.log_likelihood(images, questions)
    monkeypatch.setattr(type(critic.processor), "apply_chat_template", None)
    monkeypatch.setattr(type(critic.processor), "__call__", None)
    assert torch.equal(critic.log_likelihood(images, questions), first)


def test_half_precision_stays_close(folders, family, critic, images, ask):
    questions = [ask(RED), ask(LONG, "not sure")]
    half = load_critic(folders[family], device="cpu", dtype="bfloat16")
    assert half.info.dtype == "bfloat16"
    result = half.log_likelihood(images, questions)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, critic.log_likelihood(images, questions), atol=0.3, rtol=0.03)
