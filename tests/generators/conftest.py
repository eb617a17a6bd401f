"""Tiny random Flux pipelines, schnell and dev, with real classes throughout."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dual_process.generators import load_generator

WORDS = ["<pad>", "<eos>", "<unk>", "a", "red", "blue", "house", "tree", "sea", "with", "sky"]
PROMPTS = ["a red house", "a tree with blue sky"]
WIDTH = 32


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


def build_tokenizer(length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=length
    )


def build_transformer(guidance: bool) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def build_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=0.8,
        shift_factor=0.1,
    )


def build_text_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    clip = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    t5 = T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2, pad_token_id=0)
    return CLIPTextModel(clip).eval(), T5EncoderModel(t5).eval()


def build_pipeline(flavour: str) -> FluxPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        clip, t5 = build_text_encoders()
        transformer, vae = build_transformer(flavour == "dev").eval(), build_vae().eval()
        for parameter in transformer.parameters():  # larger weights, so that layers and prompts matter
            parameter.data.mul_(1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if flavour == "dev" else 1.0, use_dynamic_shifting=flavour == "dev"
    )
    pipeline = FluxPipeline(scheduler, vae, clip, build_tokenizer(12), t5, build_tokenizer(12), transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
