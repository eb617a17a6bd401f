"""Tiny random Flux pipelines, as folders and as generators."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline
from tiny_flux import PROMPTS, build_pipeline

from dual_process.generators import load_generator


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["schnell", "dev"])
def flavour(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    paths = {name: str(tmp_path_factory.mktemp("models") / f"tiny-{name}") for name in ("schnell", "dev")}
    for name, path in paths.items():
        build_pipeline(name).save_pretrained(path)
    return paths


@pytest.fixture
def folder(folders, flavour) -> str:
    return folders[flavour]


def _open_pipeline(folder: str) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(folder) -> FluxPipeline:
    return _open_pipeline(folder)


@pytest.fixture
def generator(folder):
    return load_generator(folder, PROMPTS, "cpu", height=64, width=96, num_inference_steps=3)


@pytest.fixture
def schnell(folders):
    return load_generator(folders["schnell"], PROMPTS, "cpu", height=64, width=96, num_inference_steps=3)


@pytest.fixture
def randomize_lora():
    """Gives a generator's LoRA a random B, as after training."""

    @torch.no_grad()
    def randomize(generator, seed: int = 5, deviation: float = 0.2) -> None:
        random = torch.Generator().manual_seed(seed)
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * deviation)

    return randomize


@pytest.fixture
def run_pipeline(folder):
    """FluxPipeline's own pictures [B, 3, H, W] of PROMPTS[0] from the generator's noise, one per seed."""

    def run(
        pipeline: FluxPipeline, seeds, steps: int = 3, height: int = 64, width: int = 96, prompt: int = 0, **options
    ):
        noise = torch.stack(
            [torch.randn(16, height // 8, width // 8, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        latents = FluxPipeline._pack_latents(noise, len(seeds), 16, height // 8, width // 8)
        return pipeline(
            [PROMPTS[prompt]] * len(seeds),
            height=height,
            width=width,
            num_inference_steps=steps,
            latents=latents,
            max_sequence_length=12,
            output_type="pt",
            **options,
        ).images

    return run
