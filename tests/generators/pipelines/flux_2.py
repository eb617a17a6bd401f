from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tiny_flux import WIDTH, WORDS
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen3ForCausalLM,
)

from . import Tiny, centred
from .z_image import build_chat_tokenizer, qwen3_config

LENGTH = 48  # of the sequence, with dev's system message
TEMPLATE = "{% for message in messages %}a {{ message['content'][0]['text'] }} <eos>{% endfor %}"  # of typed contents


def build_mistral():
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "head_dim": WIDTH // 2}
    text = MistralConfig(
        vocab_size=len(WORDS), num_hidden_layers=30, num_key_value_heads=1, bos_token_id=0, eos_token_id=1, **sizes
    )
    vision = PixtralVisionConfig(num_hidden_layers=1, image_size=16, patch_size=8, **sizes)
    return Mistral3ForConditionalGeneration(Mistral3Config(vision_config=vision, text_config=text, image_token_index=2))


def build_vae():
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, use_quant_conv=False
    )
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def build_transformer(guidance, heads=2, axes=(4, 4, 4, 4), single_layers=2):
    return Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=single_layers,
        attention_head_dim=sum(axes),
        num_attention_heads=heads,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=axes,
        guidance_embeds=guidance,
    ).eval()


def build(flavour):
    dev = flavour == "dev"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = build_mistral() if dev else Qwen3ForCausalLM(qwen3_config(layers=28))
        transformer, vae = build_transformer(dev), build_vae()
    transformer.proj_out.weight.data.mul_(10)  # so that a LoRA in the blocks can be seen
    centred(vae, (4, 32, 8, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    tokenizer = build_chat_tokenizer(LENGTH)
    if dev:
        tokenizer.chat_template = TEMPLATE
        pipeline = Flux2Pipeline(scheduler, vae, encoder.eval(), tokenizer, transformer)
    else:
        distilled = flavour == "distilled"
        pipeline = Flux2KleinPipeline(scheduler, vae, encoder.eval(), tokenizer, transformer, is_distilled=distilled)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TINIES = [
    Tiny("flux-2-klein", lambda: build("distilled"), {"max_sequence_length": LENGTH}),
    Tiny("flux-2-klein", lambda: build("base"), {"max_sequence_length": LENGTH, "guidance_scale": 4.0}),
    Tiny("flux-2-dev", lambda: build("dev"), {"max_sequence_length": LENGTH, "guidance_scale": 4.0}),
]
