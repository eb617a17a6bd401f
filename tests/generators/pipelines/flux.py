from __future__ import annotations

from tiny_flux import build_pipeline

from dual_process.generators.architectures.packing import pack

from . import Tiny

TINIES = [
    Tiny("flux-1-schnell", lambda: build_pipeline("schnell"), {"max_sequence_length": 12}, pack),
    Tiny("flux-1-dev", lambda: build_pipeline("dev"), {"max_sequence_length": 12, "guidance_scale": 3.5}, pack),
]
