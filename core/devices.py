"""Which device a model computes on."""

from __future__ import annotations

import torch

from .errors import DualProcessError


def choose_device(device: str | torch.device | None, error: type[DualProcessError]) -> torch.device:
    """The device of this name; None is cuda if there is one, else cpu.

    Raises:
        error: there is no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise error(f"Expected a device such as 'cuda' or 'cpu', got {device!r}.") from cause
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise error(f"Expected a device of this machine, got {str(device)!r}, but torch finds no GPU; use 'cpu'.")
    # "cuda" is written out as ComfyUI and tensors do, to compare equal to their devices.
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen
