"""How well two controls stand together: LoRAs trained apart and loaded both, and the second trained on the first.

    python benchmarks/stacking.py --json

The pictures are of prompts that are silent about the time of day, with whichever LoRAs a row names at strength 1 in
plain diffusers. "palette on horizon" was trained with the horizon's LoRA in place and is loaded beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import FluxPipeline
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.utils import save_image

from dual_process import demo
from dual_process.demo.controls import CONTROLS, DEFAULT_LINE
from dual_process.demo.fidelity import true_pictures
from dual_process.demo.world import IMAGE_SIZE, scenes_from_noise, with_horizon, with_time
from dual_process.distillation import distill
from dual_process.evaluation.control import Pairs, make_pairs
from dual_process.evaluation.fidelity import against_base, against_truth
from dual_process.evaluation.measures import psnr
from dual_process.generators import DiffusersGenerator, load_generator
from dual_process.generators.noise import draw_noise

ON_HORIZON = "palette on horizon"
ROWS = (
    (),
    *(("horizon",), ("night",), ("palette",)),
    *(("horizon", "night"), ("horizon", "palette"), ("horizon", ON_HORIZON), ("night", "palette")),
)


def main(
    seeds: Annotated[int, typer.Option(help="Training seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    pairs: Annotated[int, typer.Option(help="Held-out (prompt, noise) pairs.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, else as a Markdown table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep the LoRAs and 16 of the pictures here.")] = None,
) -> None:
    """Trains the LoRAs with every seed and prints a row for each set that is loaded."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in track(range(first_seed, first_seed + seeds), console=Console(stderr=True)):
            folder = (output or Path(scratch)) / str(seed)
            loras = trained(seed, folder)
            for names in ROWS:
                images, held_out = pictures([loras[name] for name in names], pairs)
                if output is not None:
                    save_image(images[:16], folder / f"{' + '.join(names) or 'none'}.png")
                rows.append({"seed": seed, "loaded": list(names), **measured(names, images, held_out)})
    print(json.dumps(rows, indent=2) if as_json else markdown(rows))


def trained(seed: int, folder: Path) -> dict[str, Path]:
    """LoRA files of every control alone, and of the palette with the horizon in place."""
    files = {}
    for name, make in CONTROLS.items():
        control = make(seed=seed)
        generator, critic = demo.load(control.prompts)
        files[name] = distill(generator, critic, control.recipe).save(folder / f"{name}.safetensors")
    control = CONTROLS["palette"](seed=seed)
    generator = loaded([files["horizon"]], control.prompts)
    _, critic = demo.load(control.prompts)
    files[ON_HORIZON] = distill(generator, critic, control.recipe).save(folder / "palette_on_horizon.safetensors")
    return files


def loaded(loras: Sequence[Path], prompts: Sequence[str]) -> DiffusersGenerator:
    """The demo generator with LoRA files that diffusers itself has loaded, each at strength 1."""
    pipeline = FluxPipeline.from_pretrained(demo.WEIGHTS / "pipeline", local_files_only=True)
    for number, path in enumerate(loras):
        pipeline.load_lora_weights(path, adapter_name=f"lora{number}")
    if loras:
        pipeline.set_adapters([f"lora{number}" for number in range(len(loras))])
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "num_inference_steps": 1}
    return load_generator(pipeline, prompts=list(prompts), device="cpu", **size)


def pictures(loras: Sequence[Path], count: int) -> tuple[Tensor, Pairs]:
    """Held-out pictures [B, 3, H, W] with these LoRAs loaded, and what they are of."""
    night = CONTROLS["night"]()
    generator = loaded(loras, night.prompts)
    held_out = make_pairs(night, count, lambda seeds: draw_noise(seeds, *night.noise_shape))
    batches = zip(torch.tensor(held_out.indices).split(16), torch.tensor(held_out.seeds).split(16), strict=True)
    return torch.cat([generator.sample(i.tolist(), s.tolist()) for i, s in batches]), held_out


def measured(names: Sequence[str], images: Tensor, pairs: Pairs) -> dict[str, float]:
    """Each control's own error, and how near the pictures are to those that the loaded controls should lead to.

    Where a palette is loaded the true colours are not known, only whether objects are still there.
    """
    measures = {name: make().measure(images, images, pairs) for name, make in CONTROLS.items()}
    scenes = with_time(pairs.prompts, pairs.noise, "night") if "night" in names else None
    scenes = scenes or scenes_from_noise(pairs.prompts, pairs.noise)
    truth = true_pictures(with_horizon(scenes, DEFAULT_LINE) if "horizon" in names else scenes)
    found = {
        "horizon_error_px": measures["horizon"]["horizon_error_px"]["mean"],
        "night_share": measures["night"]["night_share"],
        "palette_error_ciede2000": measures["palette"]["palette_error_ciede2000"]["mean"],
    }
    if set(names) & {"palette", ON_HORIZON}:
        return {**found, **_kept(against_base(images, truth.images, truth, pairs.prompts))}
    likeness = float(psnr(images, truth.images).mean())
    return {**found, "psnr_counterfactual": likeness, **_kept(against_truth(images, truth, pairs.prompts))}


def _kept(measures: dict[str, float]) -> dict[str, float]:
    return {name: measures[name] for name in ("object_presence", "unevenness") if name in measures}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a row."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("seed", "loaded")))
    lines = ["| seed | loaded | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = " | ".join(f"{row[name]:.3g}" if name in row else "" for name in names)
        lines.append(f"| {row['seed']} | {' + '.join(row['loaded']) or 'none'} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
