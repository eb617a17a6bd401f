"""Generators and critics at their real sizes, and small ones of the same kinds that fit any machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import transformers

import dual_process
from dual_process.generators.architectures.architecture import Architecture
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.architectures.flux_2 import FLUX_2_DEV, FLUX_2_KLEIN
from dual_process.generators.architectures.qwen_image import QWEN_IMAGE
from dual_process.generators.architectures.z_image import Z_IMAGE

sys.path.insert(0, str(Path(dual_process.__file__).parent / "tests"))
from tiny_models.qwen import write_qwen, write_qwen3

TEXT = 256  # tokens of a prompt
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # what a critic's processor makes of a picture


@dataclass(frozen=True)
class GeneratorModels:
    """Makes random parts of a pipeline.

    Attributes:
        conditions: shapes of an encoded prompt's float tensors.
        masked: whether it has a mask of the text's tokens, too.
    """

    architecture: Architecture
    network: Callable[[], Any]
    vae: Callable[[], Any]
    conditions: Mapping[str, tuple[int, ...]]
    masked: bool = False


def flux_vae(width: int = 128) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flux_2_klein() -> Any:
    sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    return diffusers.Flux2Transformer2DModel(**sizes, guidance_embeds=False)


def small_flux(heads: int = 8, double: int = 3, single: int = 6) -> Any:
    return diffusers.FluxTransformer2DModel(
        guidance_embeds=False,
        num_layers=double,
        num_single_layers=single,
        num_attention_heads=heads,
        joint_attention_dim=1024,
    )


GENERATORS = {
    "flux-schnell": GeneratorModels(
        FLUX,
        lambda: diffusers.FluxTransformer2DModel(guidance_embeds=False),
        flux_vae,
        {"sequence": (1, TEXT, 4096), "pooled": (1, 768)},
    ),
    "flux2-dev": GeneratorModels(
        FLUX_2_DEV, diffusers.Flux2Transformer2DModel, diffusers.AutoencoderKLFlux2, {"sequence": (1, TEXT, 15360)}
    ),
    "flux2-klein": GeneratorModels(
        FLUX_2_KLEIN, flux_2_klein, diffusers.AutoencoderKLFlux2, {"sequence": (1, TEXT, 7680)}
    ),
    "qwen-image": GeneratorModels(
        QWEN_IMAGE,
        diffusers.QwenImageTransformer2DModel,
        diffusers.AutoencoderKLQwenImage,
        {"sequence": (1, TEXT, 3584)},
        masked=True,
    ),
    "z-image": GeneratorModels(
        Z_IMAGE, diffusers.ZImageTransformer2DModel, flux_vae, {"sequence": (1, TEXT, 2560)}, masked=True
    ),
}
SMALL_GENERATOR = GeneratorModels(
    FLUX, small_flux, lambda: flux_vae(64), {"sequence": (1, TEXT, 1024), "pooled": (1, 768)}
)
TINY_GENERATOR = GeneratorModels(
    FLUX, lambda: small_flux(1, 2, 2), lambda: flux_vae(32), {"sequence": (1, 8, 1024), "pooled": (1, 768)}
)


@dataclass(frozen=True)
class CriticModels:
    """Configurations of a vision-language model's two parts, beside those of a tiny one of its family.

    Attributes:
        write: writes the tiny one, whose tokenizer knows a few words.
        tied: whether the head is the embedding.
    """

    config: Any
    model: Any
    write: Callable[[Path], Path]
    text: dict[str, Any]
    vision: dict[str, Any] = field(default_factory=dict)
    tied: bool = False

    def parts(self) -> tuple[Any, Any]:
        """The tiny one's processor, and this one's configuration."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            processor = transformers.AutoProcessor.from_pretrained(folder)
            small = self.config.from_pretrained(folder)
        processor.image_processor.size = PIXELS
        ends = {f"{end}_token_id": getattr(small.text_config, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        named = ("image", "video", "vision_start", "vision_end")
        config = self.config(
            text_config={**self.text, **ends, "max_position_embeddings": 128000},
            vision_config=self.vision,
            tie_word_embeddings=self.tied,
            **{f"{token}_token_id": getattr(small, f"{token}_token_id") for token in named},
        )
        config._attn_implementation = "sdpa"
        return processor, config


def qwen_2_5(text: dict[str, Any], vision: dict[str, Any]) -> CriticModels:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    return CriticModels(
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLForConditionalGeneration,
        write_qwen,
        {"rope_parameters": rope, **text},
        {"window_size": 112, "out_hidden_size": text["hidden_size"], **vision},
    )


CRITICS = {
    "qwen2.5-vl-7b": qwen_2_5(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    "qwen3-vl-4b": CriticModels(
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLForConditionalGeneration,
        write_qwen3,
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
                "rope_theta": 5e6,
            },
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tied=True,
    ),
}


def small_qwen(layers: int, heads: int) -> CriticModels:
    width = 128 * heads
    return qwen_2_5(
        {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(heads // 4, 1),
            "vocab_size": 4096,
        },
        {
            "depth": layers,
            "hidden_size": width // 2,
            "intermediate_size": 2 * width,
            "num_heads": heads,
            "fullatt_block_indexes": [layers - 1],
        },
    )


SMALL_CRITIC = small_qwen(layers=8, heads=8)
TINY_CRITIC = small_qwen(layers=2, heads=1)
