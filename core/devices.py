"""Which device a model computes on."""

from __future__ import annotations

import sys

import psutil
import torch

from .errors import DualProcessError


def choose_device(device: str | torch.device | None, error: type[DualProcessError]) -> torch.device:
    """The device of this name; None is cuda if there is one, else cpu.

    Raises:
        error: this machine's torch cannot compute there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise error(f"Expected a device such as 'cuda' or 'cpu', got {device!r}.") from cause
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise error(f"Expected a device of this machine, got {str(device)!r}, but torch finds no GPU; use 'cpu'.")
    if chosen.type != "cpu":
        _check_usable(chosen, error)
    # "cuda" is written out as ComfyUI and tensors do, to compare equal to their devices.
    return torch.device("cuda", torch.cuda.current_device()) if str(chosen) == "cuda" else chosen


def _check_usable(device: torch.device, error: type[DualProcessError]) -> None:
    """Raises `error` unless a number can be put on the device and read back; "meta", for one, holds none."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as cause:  # by device and build of torch
        reason = str(cause).strip().split("\n")[0]
        raise error(
            f"Expected a device of this machine, got {str(device)!r}, which torch cannot use ({reason}). "
            "Use 'cpu', or 'cuda' where there is a GPU."
        ) from cause


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU, of main memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def peak_memory(device: torch.device) -> int:
    """Bytes that this program has taken at most: on the GPU since `torch.cuda.reset_peak_memory_stats`, else ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
