"""For tests: the tiny random models of tests/painters, as loader nodes hand them on."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path += [str(TESTS / "generators"), str(TESTS / "painters")]


class TinyModels:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "build"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": ("STRING", {})}}

    def build(self, kind):
        from tiny_comfy import CASES

        return CASES[kind].build()


NODE_CLASS_MAPPINGS = {"TestTinyModels": TinyModels}
