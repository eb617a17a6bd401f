"""A run whose process is killed goes on from its last checkpoint bit for bit, with the anchors that it had chosen."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from dual_process import demo, overlays
from dual_process.demo import questions
from dual_process.demo.controls import horizon_control
from dual_process.distillation import Anchors, Question, distill
from dual_process.distillation.checkpoint import Checkpoint

RECIPE = replace(
    horizon_control().recipe,
    questions=(
        Question(questions.HORIZON[0], overlay=overlays.horizon(0.3)),
        Question(questions.TIME[0].format("night"), "as before", weight=0.3, role="keep"),
    ),
    train_steps=6,
    batch_size=1,
    anchors=Anchors(pool=4, least=2),
)


@pytest.fixture
def left_behind(tmp_path):
    """The checkpoint of a process that was killed amid its steps."""
    path = tmp_path / "checkpoint.safetensors"
    process = subprocess.Popen([sys.executable, __file__, str(path)])
    try:
        deadline = time.monotonic() + 600
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return path


def test_a_killed_run_goes_on_as_if_nothing_had_happened(models, left_behind):
    left, pool = Checkpoint.load(left_behind), []
    assert 0 < left.steps < RECIPE.train_steps
    resumed = distill(*models, RECIPE, resume_from=left_behind, on_anchor=lambda *counts: pool.append(counts))
    lora = resumed.lora_state_dict()
    assert not pool  # the anchors are those of the checkpoint
    whole = distill(*models, RECIPE)
    assert_equal(lora, whole.lora_state_dict())
    assert_equal(resumed.checkpoint.tensors, whole.checkpoint.tensors)  # the optimiser's, too
    assert left.anchors == resumed.checkpoint.anchors == whole.checkpoint.anchors
    assert len(left.anchors) >= 2
    one, other = (result.metadata("x")["dual_process.anchors"] for result in (resumed, whole))
    assert one == other == left.metadata["anchors"]
    one, other = ([replace(report, seconds=0.0) for report in result.history] for result in (resumed, whole))
    assert one == other
    assert other[-1].penalties["anchors"] > 0


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


if __name__ == "__main__":  # the process to be killed
    torch.set_num_threads(1)  # as in conftest.py
    distill(*demo.load(RECIPE.prompts), RECIPE, checkpoint_path=sys.argv[1], checkpoint_every=2)
