"""Pictures beside the judged one, in every family that takes several, against the unmodified model."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES

from dual_process.core.errors import CriticError
from dual_process.core.picture import Picture
from dual_process.critics import load_critic

TEXT = "is the picture red ?"
ONE = f"The first picture is the one to judge; behind it is picture A. {TEXT}"
TWO = f"The first picture is the one to judge; behind it are pictures A and B. {TEXT}"


def picture(height, width, seed):
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return Picture.from_tensor(pixels * torch.linspace(0.2, 1, width))


WIDE, TALL = picture(56, 112, 1), picture(112, 56, 2)  # the judged ones are 56 × 84


@pytest.fixture(params=[name for name in FAMILIES if name != "paligemma"])
def family(request):
    """A PaliGemma takes one picture."""
    return request.param


@pytest.mark.parametrize("words", [["Yes"], ["not", "sure"]])
@pytest.mark.parametrize(("references", "text"), [((WIDE,), ONE), ((TALL, WIDE), TWO)], ids=["one", "two"])
def test_equals_a_naive_word_by_word_computation(critic, naive, images, ask, references, text, words):
    ours = critic.log_likelihood(images, [ask(TEXT, " ".join(words), references)])
    beside = [one.tensor() for one in references]
    expected = [[naive.log_likelihood(image, text, words, beside)] for image in images]
    torch.testing.assert_close(ours, torch.tensor(expected), atol=1e-4, rtol=0)


def test_several_questions_share_the_pictures(critic, images, ask):
    questions = [ask(TEXT, "Yes", (WIDE,)), ask("dark ?", "not sure", (WIDE,))]
    together = critic.log_likelihood(images, questions)
    apart = [[critic.log_likelihood(image[None], [question]) for question in questions] for image in images]
    torch.testing.assert_close(together, torch.tensor(apart), atol=1e-5, rtol=0)


def test_each_reference_and_their_order_count(critic, images, ask):
    shown = [(), (WIDE,), (TALL,), (WIDE, TALL), (TALL, WIDE)]
    found = [critic.log_likelihood(images, [ask(TEXT, "Yes", references)]) for references in shown]
    for number, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-6 for other in found[:number])


def test_the_gradient_equals_finite_differences(folders, family, images, ask):
    critic = load_critic(folders[family], device="cpu", dtype="float64")
    questions = [ask(TEXT, "Yes", (WIDE,)), ask("dark ?", "not sure", (WIDE,))]
    weights = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)

    def value(x):
        return (critic.log_likelihood(x, questions) * weights).sum()

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator)
        direction = direction / direction.norm() + gradient / gradient.norm()
        step = 2e-3
        with torch.no_grad():
            measured = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
        torch.testing.assert_close(measured, (gradient.double() * direction.double()).sum(), rtol=1e-3, atol=0)


def test_replies_see_the_references(critic, images):
    replies = {critic.answer(images[:1], TEXT, 8, references)[0] for references in ((), (WIDE,), (TALL,))}
    assert all(isinstance(reply, str) for reply in replies)


def test_paligemma_says_that_it_takes_one_picture(critics, images, ask):
    with pytest.raises(CriticError, match="one picture only"):
        critics["paligemma"].log_likelihood(images, [ask(TEXT, "Yes", (WIDE,))])


def test_questions_with_different_references_are_asked_apart(critics, images, ask):
    with pytest.raises(CriticError, match="ask them apart"):
        critics["qwen"].log_likelihood(images, [ask(TEXT, "Yes", (WIDE,)), ask(TEXT, "Yes", (TALL,))])


def test_more_pictures_than_the_context_holds(critics, images, ask):
    critic = critics["qwen"]
    text = critic.model.config.get_text_config()
    limit, text.max_position_embeddings = text.max_position_embeddings, 40
    try:
        with pytest.raises(CriticError, match=r"context ends at 40.* or fewer than 5 references"):
            critic.log_likelihood(images, [ask("how dark ?", "Yes", (WIDE, TALL) * 2 + (WIDE,))])
    finally:
        text.max_position_embeddings = limit
    with pytest.raises(CriticError, match="at most 25 references"):
        critic.log_likelihood(images, [ask("how dark ?", "Yes", (WIDE,) * 26)])


def test_a_critic_of_small_pictures_sees_small_references(critics, folders, images, ask):
    small = load_critic(folders["qwen"], device="cpu", max_size=56)
    large = picture(560, 560, 3)
    shrunk = Picture.from_image(Image.open(BytesIO(large.png)).resize((56, 56), Image.Resampling.BICUBIC))
    question, same = ask(TEXT, "Yes", (large,)), ask(TEXT, "Yes", (shrunk,))
    torch.testing.assert_close(
        small.log_likelihood(images, [question]), small.log_likelihood(images, [same]), atol=2e-2, rtol=0
    )


def image_of(mode):
    grey = np.linspace(0, 255, 64 * 32).reshape(32, 64)
    if mode == "I;16":
        return Image.fromarray((grey * 257).astype(np.uint16))
    return Image.fromarray(grey.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P", "1", "CMYK", "LA"])
def test_pictures_of_every_kind_become_rgb(mode):
    found = Picture.from_image(image_of(mode)).tensor()
    assert found.shape == (3, 32, 64)
    if mode in ("L", "I;16", "RGBA", "LA"):
        torch.testing.assert_close(found, Picture.from_image(image_of("RGB")).tensor(), atol=2 / 255, rtol=0)


def test_transparent_pictures_stand_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert torch.equal(Picture.from_image(clear).tensor(), torch.ones(3, 4, 4))


def test_large_pictures_are_shrunk_in_proportion():
    assert Picture.from_image(Image.new("RGB", (4096, 1000))).tensor().shape == (3, 500, 2048)


def test_other_data_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for call in (
        lambda: Picture.from_file(tmp_path / "missing.png"),
        lambda: Picture.from_file(tmp_path / "text.png"),
        lambda: Picture.from_dict({"png": "!"}),
        lambda: Picture.from_dict({"path": "x"}),
        lambda: Picture.from_dict(5),
    ):
        with pytest.raises(ValueError, match="picture"):
            call()
