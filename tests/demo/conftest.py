"""The demo models, loaded once for all tests of this folder."""

from __future__ import annotations

import pytest
import torch

from dual_process import demo
from dual_process.demo.controls import horizon_control


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The same sums in the same order on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models():
    """The generator (with the horizon control's prompts) and the critic."""
    return demo.load(horizon_control().prompts)
