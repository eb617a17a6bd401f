"""Pictures of any size: square, wide, tall, small and odd ones, each resized as its model does it."""

import pytest
import torch

SIZES = [(1024, 1024), (1000, 600), (600, 1000), (80, 80), (37, 91)]  # width, height


@pytest.mark.parametrize(("width", "height"), SIZES, ids=[f"{width}x{height}" for width, height in SIZES])
def test_is_seen_and_has_a_gradient(critic, naive, ask, width, height):
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2)) * 0.3
    picture = (noise + torch.linspace(0.6, 0, width) + torch.linspace(0, 0.1, height)[:, None]).requires_grad_()
    questions = [ask("is the picture red ?"), ask("what color do you see in it ?", "not sure")]
    values = critic.log_likelihood(picture, questions)
    (gradient,) = torch.autograd.grad(values.sum(), picture)
    expected = [naive.log_likelihood(picture.detach()[0], q.text, q.answer.split()) for q in questions]
    torch.testing.assert_close(values.detach(), torch.tensor([expected]), atol=1e-4, rtol=0)
    assert gradient.shape == picture.shape
    assert gradient.isfinite().all()
    quarters = [part for half in gradient.tensor_split(2, dim=2) for part in half.tensor_split(2, dim=3)]
    assert all(part.abs().max() > 0 for part in quarters)
