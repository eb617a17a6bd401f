"""Stage 4: the trained models in standard formats: a diffusers FluxPipeline folder and a transformers VLM folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline
from peft import PeftModel

from .critic import CriticWithHeads
from .generator import TextToVelocity


def export(folder: Path, vae: AutoencoderTiny, generator: TextToVelocity, critic: CriticWithHeads) -> None:
    """Writes `pipeline/` and `critic/` below `folder`, weights in float16; the pipeline loads in float32."""

    def half(model: torch.nn.Module) -> torch.nn.Module:
        return copy.deepcopy(model).to(torch.float16)

    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=half(vae),
        text_encoder=half(generator.clip),
        tokenizer=generator.tokenizer,
        text_encoder_2=half(generator.t5),
        tokenizer_2=generator.tokenizer,
        transformer=half(generator.transformer),
    )
    pipeline.save_pretrained(folder / "pipeline")
    for encoder in ("text_encoder", "text_encoder_2"):
        _load_in_float32(folder / "pipeline" / encoder / "config.json")
    half(critic.model).save_pretrained(folder / "critic")
    critic.processor.save_pretrained(folder / "critic")


def export_adapter(folder: Path, model: PeftModel) -> None:
    """Writes an adapter of the critic beside it into `folder`, in float16, as PEFT does, but for its model card."""
    model = copy.deepcopy(model).half()
    model.peft_config["default"].base_model_name_or_path = "critic"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


def _load_in_float32(config: Path) -> None:
    """Unless told otherwise, transformers loads in the dtype that is named here, and diffusers always in float32."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
