import pytest
import torch

from dual_process.core.errors import GeneratorError
from dual_process.generators.noise import draw_noise


def test_equals_what_comfyui_draws_for_a_seed():
    torch.manual_seed(11)
    expected = torch.randn(1, 16, 6, 10)  # comfy.sample.prepare_noise
    assert torch.equal(draw_noise([11], 16, 6, 10), expected)


def test_depends_on_its_own_seed_only():
    together = draw_noise([3, 2**64 - 1, 4], 16, 4, 4)
    assert torch.equal(together[2], draw_noise([4], 16, 4, 4)[0])
    assert not torch.equal(together[0], together[1])


def test_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draw_noise([5], 16, 4, 4)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", ["one", 2**64, 1.5, None])
def test_refuses_what_is_no_seed(seed):
    with pytest.raises(GeneratorError, match="Expected a seed"):
        draw_noise([seed], 16, 4, 4)
