"""Stage 2: a generator and its text encoders, a rectified flow on coupled (noise, scene) pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from ..models import build_text_encoders, build_transformer
from ..tokenizer import prompt_tokenizer
from ..world import LATENT_SIZE, build_scenes, caption, couple_noise, random_uniforms, random_words, render
from .common import Checkpoint, Run, cosine, set_learning_rate

STEPS, BATCH, POOL = 7500, 32, 20000
EMA = 0.998


class TextToVelocity(nn.Module):
    """Everything that stage 2 trains, as one module, for pictures of `grid` × `grid` image tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, grid: int = 7, text_layers: int = 1) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.transformer: FluxTransformer2DModel = build_transformer()
        length = tokenizer.model_max_length
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        clip, t5 = build_text_encoders(len(tokenizer), length, pad, eos, text_layers)
        self.clip: CLIPTextModel = clip
        self.t5: T5EncoderModel = t5
        self.register_buffer("image_ids", FluxPipeline._prepare_latent_image_ids(1, grid, grid, "cpu", torch.float32))

    def forward(self, packed: Tensor, time: Tensor, tokens: Tensor, reference: Tensor | None = None) -> Tensor:
        """Velocity [B, N, 64] of N packed latents at flow-matching times [B], for prompts' tokens [B, L].

        A `reference` picture [B, N, 64] is shown as Flux Kontext shows it: further tokens, 1 on the first axis.
        """
        count, ids = packed.shape[1], self.image_ids
        if reference is not None:
            packed = torch.cat([packed, reference], dim=1)
            ids = torch.cat([ids, ids + torch.tensor([1.0, 0.0, 0.0])])
        return self.transformer(
            hidden_states=packed,
            timestep=time,
            encoder_hidden_states=self.t5(tokens).last_hidden_state,
            pooled_projections=self.clip(tokens).pooler_output,
            img_ids=ids,
            txt_ids=torch.zeros(tokens.shape[1], 3),
            return_dict=False,
        )[0][:, :count]


def pack(latents: Tensor) -> Tensor:
    """[B, 16, h, w] → [B, h·w/4, 64], as Flux packs 2 × 2 patches."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def _encode_pool(run: Run, vae: AutoencoderTiny, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Latents, token ids and scene parameters of POOL captioned scenes."""
    generator = run.generator("generator-pool")
    parts: list[dict[str, Tensor]] = []
    for _ in range(0, run.steps(POOL), 64):
        words, uniforms = random_words(64, generator), random_uniforms(64, generator)
        templates = torch.randint(2, (64,), generator=generator).tolist()
        images = render(build_scenes(words, uniforms))
        tokens = tokenize(tokenizer, [caption(w, t) for w, t in zip(words, templates, strict=True)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encoder(images * 2 - 1).half()
        parts.append({"latents": latents, "tokens": tokens, **uniforms})
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Batch:
    """What one step learns: noised latents and their velocities [B, N, 64], times [B], prompts' tokens [B, L]."""

    packed: Tensor
    times: Tensor
    tokens: Tensor
    target: Tensor
    reference: Tensor | None = None  # packed latents of a picture that the prompt changes
    hidden: Tensor | None = None  # [B, K], what a throw-away head has to find in the noise at time 1


def random_times(generator: torch.Generator, ones: float = 0.4, quarters: float = 0.25) -> Tensor:
    """Flow-matching times [BATCH]: 1 for a share of them, a quarter step for another, else uniform."""
    kind, uniform = torch.rand(BATCH, generator=generator), torch.rand(BATCH, generator=generator)
    steps = (1 + (uniform * 3).floor()) / 4
    return torch.where(kind < ones, torch.ones(()), torch.where(kind < ones + quarters, steps, uniform.clamp(min=0.02)))


def noised(latents: Tensor, noise: Tensor, times: Tensor, tokens: Tensor, reference: Tensor | None = None) -> Batch:
    """A batch of latents, noise and references [B, 16, h, w] at times [B]."""
    t = times[:, None, None, None]
    shown = None if reference is None else pack(reference)
    return Batch(pack((1 - t) * latents + t * noise), times, tokens, pack(noise - latents), shown)


def _batch(pool: dict[str, Tensor], generator: torch.Generator) -> Batch:
    index = torch.randint(len(pool["latents"]), (BATCH,), generator=generator)
    drawn = {name: value[index] for name, value in pool.items()}
    latents, tokens = drawn.pop("latents").float(), drawn.pop("tokens")
    noise = couple_noise(torch.randn(BATCH, 16, LATENT_SIZE, LATENT_SIZE, generator=generator), drawn)
    return noised(latents, noise, random_times(generator), tokens)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)


def train_generator(run: Run, vae: AutoencoderTiny) -> TextToVelocity:
    """Trains the first world's generator, or goes on where an earlier run stopped."""
    tokenizer = prompt_tokenizer()
    return train_on(
        run,
        run.steps(STEPS),
        lambda: TextToVelocity(tokenizer),
        lambda: _encode_pool(run, vae, tokenizer),
        lambda pool, step: _batch(pool, run.generator("generator", step)),
        lambda model: _show(run, model, vae, tokenizer),
    )


def train_on(
    run: Run,
    steps: int,
    build: Callable[[], TextToVelocity],
    make_pool: Callable[[], dict[str, Tensor]],
    draw_batch: Callable[[dict[str, Tensor], int], Batch],
    show: Callable[[TextToVelocity], None],
    loss: Callable[[TextToVelocity, Batch, Tensor], Tensor] = lambda model, batch, error: error.mean(),
    build_optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] = lambda model: [adamw(model.parameters())],
) -> TextToVelocity:
    """Trains a generator on batches of a pool (its moving average is returned), or goes on where it stopped.

    `loss` makes one number of the mean squared errors of the velocities of a batch, [B].
    """
    torch.manual_seed(run.seed)
    model, average = build(), build()
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False).eval()
    optimizers = build_optimizers(model)
    checkpoint = Checkpoint(run.folder / "generator.safetensors", {"model": model, "average": average}, optimizers)
    start = checkpoint.load()
    if start >= steps:
        return average
    pool = make_pool()
    for step in range(start, steps):
        batch = draw_batch(pool, step)
        for optimizer in optimizers:
            set_learning_rate(optimizer, cosine(step, steps, warmup=200))
            optimizer.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel's backward pass is slow in bfloat16 on the CPU
            with torch.autocast("cpu", torch.bfloat16):
                velocity = model(batch.packed, batch.times, batch.tokens, batch.reference).float()
            error = (velocity - batch.target).square().mean(dim=(1, 2))
            loss(model, batch, error).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            decay = min(EMA, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if (step + 1) % 100 == 0:
            run.log(
                "generator",
                step=step + 1,
                loss=float(error.mean()),
                one_step=float(error[batch.times == 1].mean()),
            )
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.save(step + 1)
            show(average)
    return average


@torch.no_grad()
def _show(run: Run, model: TextToVelocity, vae: AutoencoderTiny, tokenizer: PreTrainedTokenizerFast) -> None:
    """One-step pictures above the scenes that their noise names, and how far their horizons are off."""
    from ...evaluation.measures import horizon_position

    generator = run.generator("generator-show")
    words, uniforms = random_words(48, generator), random_uniforms(48, generator)
    noise = couple_noise(torch.randn(48, 16, LATENT_SIZE, LATENT_SIZE, generator=generator), uniforms)
    scenes = build_scenes(words, uniforms)
    truth = render(scenes)
    velocity = model(pack(noise), torch.ones(48), tokenize(tokenizer, [caption(w) for w in words]))
    latents = FluxPipeline._unpack_latents(pack(noise) - velocity, 112, 112, 8)
    images = ((vae.decoder(latents) + 1) / 2).clamp(0, 1)
    off = (horizon_position(images) - scenes.horizon).abs() * images.shape[-2]
    run.log(
        "generator-show",
        horizon_px=float(off.mean()),
        horizon_median_px=float(off.median()),
        psnr=-10 * float((images - truth).square().mean().log10()),
    )
    run.picture("generator", torch.cat([torch.cat([images[i : i + 8], truth[i : i + 8]]) for i in (0, 8)]))
