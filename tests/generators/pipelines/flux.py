from __future__ import annotations

from tiny_flux import build_pipeline

from dual_process.generators.architectures.packing import pack

from . import Tiny, centred


def build(flavour, wider=1):
    pipeline = build_pipeline(flavour, wider)
    pipeline.transformer.proj_out.weight.data.mul_(4)  # so that a LoRA in the blocks can be seen
    centred(pipeline.vae, (4, 16, 8, 8))
    return pipeline


TINIES = [
    Tiny("flux-1-schnell", lambda: build("schnell"), {"max_sequence_length": 12}, pack),
    Tiny("flux-1-dev", lambda: build("dev"), {"max_sequence_length": 12, "guidance_scale": 3.5}, pack, margin=0.015),
]
