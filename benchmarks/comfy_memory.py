"""How much memory training needs beside the model, in ComfyUI: a random Flux of about 1 GB at 256 × 256.

    COMFYUI_PATH=~/comfy/ComfyUI python benchmarks/comfy_memory.py --json

Runs in one process with ComfyUI on the CPU. A share of memory, so that machines can be compared.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import comfyui
from peak_memory import MB, Peak, resident


def write_flux(path: Path) -> None:
    """A random Flux schnell of hidden size 1536, 2 double and 4 single blocks."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=128,
        num_attention_heads=12, joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(16, 56, 56),
    )  # fmt: skip
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in transformer.state_dict().items()}, path)


def main(
    runs: Annotated[int, typer.Option(help="Trainings in a row.")] = 3,
    checkpointing: Annotated[bool, typer.Option(help="Gradient checkpointing.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Prints a row for each training: megabytes before, at the peak, and the extra share of the weights."""
    if reason := comfyui.missing():
        raise SystemExit(f"Cannot run: {reason}")
    sys.path.insert(0, str(comfyui.folder()))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd

    sys.argv = arguments
    from dual_process import demo, overlays
    from dual_process.critics import load_critic
    from dual_process.demo.comfy.models import load_models
    from dual_process.distillation import Question, Recipe, distill
    from dual_process.generators.comfy.generator import ComfyGenerator

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_flux(Path(folder) / "flux.safetensors")
        gc.collect()
        model = comfy.sd.load_diffusion_model(str(Path(folder) / "flux.safetensors"))
        _, _, vae = load_models()
    weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
    with torch.inference_mode(False):
        critic = load_critic(demo.WEIGHTS / "critic", device="cpu")
    text = [[torch.randn(1, 12, 64), {"pooled_output": torch.randn(1, 64)}]]
    question = Question("Is it night?", overlay=overlays.horizon(0.3))
    rows = []
    for number in range(runs):
        gc.collect()
        before = resident()
        with Peak() as peak, torch.inference_mode():
            generator = ComfyGenerator(
                model, vae, [text], latent={"samples": torch.zeros(1, 16, 32, 32)}, steps=1,
                gradient_checkpointing=checkpointing,
            )  # fmt: skip
            distill(generator, critic, Recipe((question,), train_steps=3))
        del generator
        extra = (peak.bytes - before) / weights
        rows.append(
            {"run": number + 1, "weight_mb": weights // MB, "rss_before_mb": before // MB,
             "rss_peak_mb": peak.bytes // MB, "extra_share": round(extra, 3)}
        )  # fmt: skip
    print(json.dumps(rows, indent=2) if as_json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    typer.run(main)
