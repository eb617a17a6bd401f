"""The gradient from log P(answer) to the image, and to nothing else."""

import torch

from dual_process.critics import load_critic


def test_equals_finite_differences(folders, family, images, ask):
    critic = load_critic(folders[family], device="cpu", dtype="float64")
    questions = [ask("is the picture red ?"), ask("what color do you see ?", "not sure")]
    weights = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)

    def value(x):
        return (critic.log_likelihood(x, questions) * weights).sum()

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(images.shape, generator=generator)
        direction = direction / direction.norm() + gradient / gradient.norm()
        step = 2e-3
        with torch.no_grad():
            measured = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
        torch.testing.assert_close(measured, (gradient.double() * direction.double()).sum(), rtol=1e-3, atol=0)


def test_reaches_the_images_only(critic, images, ask):
    leaf = images.clone().requires_grad_()
    critic.log_likelihood(leaf, [ask("is the picture red ?"), ask("dark ?", "not sure")]).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert (leaf.grad.abs().amax(dim=(1, 2, 3)) > 0).all()  # both images
    assert all(p.grad is None and not p.requires_grad for p in critic.model.parameters())
    assert not critic.model.training


def test_of_each_image_is_its_own(critic, images, ask):
    leaf = images.clone().requires_grad_()
    questions = [ask("is the picture red ?"), ask("dark ?", "not sure")]
    critic.log_likelihood(leaf, questions)[0].sum().backward()
    alone = images[:1].clone().requires_grad_()
    critic.log_likelihood(alone, questions).sum().backward()
    assert leaf.grad is not None
    assert alone.grad is not None
    assert leaf.grad[1].abs().max() == 0
    torch.testing.assert_close(leaf.grad[:1], alone.grad, atol=1e-5, rtol=1e-4)


def test_no_graph_without_gradient(critic, images, ask):
    assert not critic.log_likelihood(images, [ask("dark ?")]).requires_grad
