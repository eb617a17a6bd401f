"""Which layers a LoRA changes, chosen by kind or by pattern, alike in both hosts."""

from __future__ import annotations

import pytest

from dual_process.core.errors import GeneratorError
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.architectures.layers import splits
from dual_process.generators.targets import chosen

MODULES = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
LAYERS = [(*parts, native) for native, parts in splits(FLUX.blocks, [f"{m}.to_q" for m in MODULES], "diffusers")]


def picked(targets):
    return {names[-1] for names, take in zip(LAYERS, chosen(LAYERS, targets), strict=True) if take}


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (r"double_blocks\.0\.img_attn\.qkv", {"double_blocks.0.img_attn.qkv"}),
        (r"transformer_blocks\.0\.attn\.to_v", {"double_blocks.0.img_attn.qkv"}),  # ComfyUI's fused layer, by a part
        (r".*img_attn\.(qkv|proj)", {"double_blocks.0.img_attn.qkv", "double_blocks.0.img_attn.proj"}),
        ("attention + feed-forward", {names[-1] for names in LAYERS if not any("mod" in n for n in names)}),
    ],
)
def test_layers_are_chosen_by_any_of_their_names(targets, wanted):
    assert picked(targets) == wanted


@pytest.mark.parametrize("targets", ["img_attn", "(", "attention and feed-forward"])
def test_what_chooses_nothing_says_what_would(targets):
    with pytest.raises(GeneratorError, match=r"regular expression"):
        picked(targets)
