from __future__ import annotations

import torch
from comfy_models import build_vae, vae_file_tensors
from pipelines.chroma import build_transformer
from tiny_flux import WIDTH

from dual_process.generators.architectures.chroma import BLOCKS
from dual_process.generators.architectures.layers import splits

from . import ComfyTiny
from ._reduced import load_reduced

NAMES = {  # diffusers -> native, of what no LoRA changes
    "x_embedder.": "img_in.",
    "context_embedder.": "txt_in.",
    "single_transformer_blocks.": "single_blocks.",
    "transformer_blocks.": "double_blocks.",
    ".attn.norm_added_q": ".txt_attn.norm.query_norm",
    ".attn.norm_added_k": ".txt_attn.norm.key_norm",
    ".linear_1.": ".in_layer.",
    ".linear_2.": ".out_layer.",
}


def native_weights(transformer):
    """As the model's authors name and stack them."""
    ours, native = transformer.state_dict(), {}
    for layer, parts in splits(BLOCKS, [name for name, _ in transformer.named_modules()], "diffusers"):
        for end in (".weight", ".bias"):
            if parts[0] + end in ours:
                native[layer + end] = torch.cat([ours.pop(part + end) for part in parts])
    for name, tensor in ours.items():
        norm = ".norm." if name.startswith("single") else ".img_attn.norm."
        for old, new in (
            *NAMES.items(),
            (".attn.norm_q", f"{norm}query_norm"),
            (".attn.norm_k", f"{norm}key_norm"),
        ):
            name = name.replace(old, new)
        native[f"final_layer.linear.{name[9:]}" if name.startswith("proj_out.") else name] = tensor
    return native


def build(dtype):
    import comfy.sd

    torch.manual_seed(7)
    # Detection finds the depths in the weights, and takes the widths for those of the published model. Whatever the
    # depths, ComfyUI counts 344 modulations, so that those of the last layer are not those of diffusers' small model.
    small = {"num_heads": 2, "axes_dim": [4, 6, 6], "out_dim": WIDTH, "hidden_dim": WIDTH, "n_layers": 1}
    model = load_reduced(native_weights(build_transformer()), dtype, **small)
    with torch.inference_mode():
        return model, comfy.sd.VAE(sd=vae_file_tensors(build_vae()))


def conditioning(number):
    return [[torch.randn(1, 5 + 3 * number, WIDTH, generator=torch.Generator().manual_seed(number)), {}]]


TINIES = [ComfyTiny("chroma", build, conditioning, (1, 16, 8, 8), {"cfg": 4.0})]
