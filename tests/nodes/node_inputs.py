"""What the nodes are given in tests."""

from __future__ import annotations

import torch

EMPTY = {"samples": torch.zeros(1, 16, 14, 14)}
QUESTION = "Is the overlaid red line aligned with the horizon of the scene?"
SETTINGS = {
    "train_steps": 3,
    "learning_rate": 5e-4,
    "seed": 1,
    "batch_size": 2,
    "steps": 1,
    "scheduler": "simple",
    "cfg": 1.0,
    "rank": 4,
    "lora_alpha": 16.0,
    "lr_schedule": "constant",
    "gradient_accumulation": 1,
    "velocity_weight": 0.5,
    "range_weight": 0.0,
    "max_grad_norm": 1.0,
    "stop_probability": 1.0,
    "timesteps": "sampler",
    "gradient_checkpointing": True,
}
