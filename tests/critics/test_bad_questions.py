"""What a critic cannot be asked, and how it says so."""

import pytest
import torch

from dual_process.core.errors import CriticError


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 56, 56), r"\[B, 3, H, W\].*got \[3, 56, 56\]"),
        (torch.rand(1, 4, 56, 56), r"\[B, 3, H, W\].*got \[1, 4, 56, 56\]"),
        (torch.rand(1, 56, 56, 3), r"\[B, 3, H, W\].*got \[1, 56, 56, 3\]"),
        (torch.rand(0, 3, 56, 56), r"none of them zero"),
        (torch.rand(1, 3, 0, 56), r"none of them zero"),
        ([[0.5]], r"got list"),
        (torch.zeros(1, 3, 56, 56, dtype=torch.uint8), r"float dtype.*uint8.*divide by 255"),
        (torch.full((1, 3, 56, 56), 255.0), r"\[0, 1\], got 255 to 255"),
        (torch.full((1, 3, 56, 56), -0.5), r"\[0, 1\], got -0.5 to -0.5"),
        (torch.full((1, 3, 56, 56), float("nan")), r"\[0, 1\], got nan"),
    ],
)
def test_images(critics, ask, images, message):
    with pytest.raises(CriticError, match=message):
        critics["qwen"].log_likelihood(images, [ask("dark ?")])


def test_images_may_exceed_the_range_by_rounding(critics, images, ask):
    slightly = images.clone()
    slightly[0, 0, 0, 0], slightly[0, 0, 0, 1] = 1.0005, -0.0005
    difference = critics["qwen"].log_likelihood(slightly, [ask("dark ?")]) - critics["qwen"].log_likelihood(
        slightly.clamp(0, 1), [ask("dark ?")]
    )
    assert difference.abs().max() < 1e-2


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        ("", "Yes", "question of at least one word"),
        (" \n", "Yes", "question of at least one word"),
        (None, "Yes", "question of at least one word"),
        ("dark ?", "", "answer of at least one word"),
        ("dark ?", "  ", "answer of at least one word"),
        ("dark ?", None, "answer of at least one word"),
        ("dark ?", "\u200b", "is nothing to the critic's tokenizer"),
        ("dark ?", "zebra", "does not know every word of the answer 'zebra'"),
        ("dark " * 600 + "?", "Yes", r"takes \d{3} tokens, but the critic's context ends at 512. Shorten the question"),
        ("is <|image_pad|> dark ?", "Yes", r"processor refused pictures of 84×56 pixels.*image_pad"),
    ],
)
def test_questions(critics, images, ask, text, answer, message):
    with pytest.raises(CriticError, match=message):
        critics["qwen"].log_likelihood(images, [ask("dark ?"), ask(text, answer)])


def test_no_question(critics, images):
    with pytest.raises(CriticError, match="at least one question"):
        critics["qwen"].log_likelihood(images, [])
