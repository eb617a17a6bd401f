"""Remakes the demo models: `python -m dual_process.demo.train --work DIR`."""

from __future__ import annotations
import sys
from pathlib import Path
import torch
from .training.common import Run

if __name__ == "__main__":
    torch.set_num_threads(1)
    run = Run(Path(sys.argv[2]))
    run.folder.mkdir(exist_ok=True, parents=True)
    stage = sys.argv[1]
    if stage == "vae":
        from .training.vae import train_vae

        train_vae(run)
    elif stage == "generator":
        from .training.generator import train_generator
        from .training.vae import train_vae

        train_generator(run, train_vae(run))
    elif stage == "critic":
        from .training.critic import train_critic
        from .training.vae import train_vae

        train_critic(run, train_vae(run))
