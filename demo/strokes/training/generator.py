"""Stage 2: the generator of the second world: pictures from prompts, and changes of a picture that it is shown."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import AutoencoderTiny, FluxPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ....core.tensor_file import read_tensors, write_tensors
from ...training.common import Run
from ...training.generator import BATCH, Batch, TextToVelocity, adamw, noised, pack, random_times, tokenize, train_on
from ..models import GRID, T5_LAYERS, prompt_tokenizer
from ..reader import read_scenes, same_scene
from ..world import IMAGE_SIZE, LATENT_SIZE, build_scenes, couple_noise, random_uniforms, render
from .words import numpy_generator, random_change, random_prompt

STEPS, POOL, CHANGES = 7000, 10560, 6000
SELDOM_MANY = (0.06, 0.4, 0.5, 0.025, 0.015)  # as real pictures have it; three and four stay hard in one pass
REFERENCE_NOISE = 0.15
PROBE_WEIGHT = 0.5
PARAMETERS = tuple(random_uniforms(1, torch.Generator()))
FEW = 4  # pictures that the VAE takes at once: as many as the processor's cache holds


class Painter(TextToVelocity):
    """With a throw-away head that finds the scene's parameters in the noise, at every token, after the first block.

    Without it the network takes thousands of steps to notice that the noise names the scene.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer, GRID, text_layers=T5_LAYERS)
        self.probe = nn.Linear(self.transformer.inner_dim, len(PARAMETERS))
        self.found: Tensor | None = None  # [B, N, K], of the last forward
        self.transformer.transformer_blocks[0].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        self.found = self.probe(output[1])


def painter_loss(model: TextToVelocity, batch: Batch, error: Tensor) -> Tensor:
    """The error of the clean picture (of the velocity, times t), and that of the throw-away head at time 1."""
    loss = (batch.times.square() * error).mean()
    if batch.hidden is None:
        return loss
    assert isinstance(model, Painter)
    assert model.found is not None
    off = (model.found.float() - batch.hidden[:, None]).square().mean(dim=(1, 2))
    return loss + PROBE_WEIGHT * (off * (batch.times == 1)).mean()


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for all else, as its authors advise."""
    named = dict(model.named_parameters())
    matrices = {name for name, p in named.items() if "transformer_blocks." in name and p.ndim == 2}
    muon = torch.optim.Muon([named[name] for name in sorted(matrices)], lr=4e-3, adjust_lr_fn="match_rms_adamw")
    return [muon, adamw(p for name, p in named.items() if name not in matrices)]


@torch.no_grad()
def _encode(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([vae.encoder(some * 2 - 1) for some in images.split(FEW)]).half()


def _encode_pool(run: Run, vae: AutoencoderTiny, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """Latents, token ids and scene parameters of prompted scenes; latents before and after, and ids, of changes."""
    kept = run.folder / "generator-pool.safetensors"
    if kept.exists():
        return read_tensors(kept)[0]
    generator = run.generator("generator-pool")
    random = numpy_generator(generator)
    parts: list[dict[str, Tensor]] = []
    for _ in range(0, run.steps(POOL), 64):
        prompts, words = zip(*[random_prompt(random, SELDOM_MANY) for _ in range(64)], strict=True)
        uniforms = random_uniforms(64, generator)
        latents = _encode(vae, render(build_scenes(words, uniforms)))
        parts.append({"latents": latents, "tokens": tokenize(tokenizer, list(prompts)), **uniforms})
    changes: list[dict[str, Tensor]] = []
    for _ in range(0, run.steps(CHANGES), 64):
        drawn, uniforms = [random_change(random) for _ in range(64)], random_uniforms(64, generator)
        before, after = (
            _encode(vae, render(build_scenes(words, uniforms)))
            for words in ([c.before for c in drawn], [c.after for c in drawn])
        )
        tokens = tokenize(tokenizer, [c.instruction for c in drawn])
        changes.append({"change_before": before, "change_after": after, "change_tokens": tokens})
    pool = {name: torch.cat([p[name] for p in some]) for some in (parts, changes) for name in some[0]}
    write_tensors(kept, pool, {})
    return pool


def _batch(pool: dict[str, Tensor], step: int, generator: torch.Generator) -> Batch:
    """Changes in every fourth step, else prompts: most at the time at which the noise alone names the scene."""
    noise = torch.randn(BATCH, 16, LATENT_SIZE, LATENT_SIZE, generator=generator)
    if step % 4 == 3:
        index = torch.randint(len(pool["change_tokens"]), (BATCH,), generator=generator)
        before, after = pool["change_before"][index].float(), pool["change_after"][index].float()
        strength = REFERENCE_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        before = before + strength * torch.randn(before.shape, generator=generator)
        return noised(after, noise, random_times(generator), pool["change_tokens"][index], before)
    index = torch.randint(len(pool["tokens"]), (BATCH,), generator=generator)
    drawn = {name: value[index] for name, value in pool.items() if not name.startswith("change")}
    latents, tokens = drawn.pop("latents").float(), drawn.pop("tokens")
    batch = noised(latents, couple_noise(noise, drawn), random_times(generator, 0.75, 0.15), tokens)
    return replace(batch, hidden=torch.stack([2 * drawn[name] - 1 for name in PARAMETERS], dim=1))


def train_generator(run: Run, vae: AutoencoderTiny) -> TextToVelocity:
    """Trains the generator, or goes on where an earlier run stopped."""
    tokenizer = prompt_tokenizer()
    return train_on(
        run,
        run.steps(STEPS),
        lambda: Painter(tokenizer),
        lambda: _encode_pool(run, vae, tokenizer),
        lambda pool, step: _batch(pool, step, run.generator("generator", step)),
        lambda model: _show(run, model, vae, tokenizer),
        painter_loss,
        muon_and_adamw,
    )


@torch.no_grad()
def _show(run: Run, model: TextToVelocity, vae: AutoencoderTiny, tokenizer: PreTrainedTokenizerFast) -> None:
    """One-step pictures above the scenes that their noise names, changes above what they should give; shares right."""
    generator = run.generator("generator-show")
    random = numpy_generator(generator)

    def paint(noise: Tensor, prompts: list[str], reference: Tensor | None = None) -> Tensor:
        velocity = model(pack(noise), torch.ones(len(noise)), tokenize(tokenizer, prompts), reference)
        latents = FluxPipeline._unpack_latents(pack(noise) - velocity, IMAGE_SIZE, IMAGE_SIZE, 8)
        return ((vae.decoder(latents) + 1) / 2).clamp(0, 1)

    prompts, words = zip(*[random_prompt(random) for _ in range(64)], strict=True)
    uniforms = random_uniforms(64, generator)
    noise = couple_noise(torch.randn(64, 16, LATENT_SIZE, LATENT_SIZE, generator=generator), uniforms)
    scenes = build_scenes(words, uniforms)
    images, truth = paint(noise, list(prompts)), render(scenes)
    changes, uniforms = [random_change(random) for _ in range(64)], random_uniforms(64, generator)
    before = render(build_scenes([c.before for c in changes], uniforms))
    wanted = build_scenes([c.after for c in changes], uniforms)
    reference = pack(vae.encoder(before * 2 - 1))
    changed, after = (
        paint(torch.randn(noise.shape, generator=generator), [c.instruction for c in changes], reference),
        render(wanted),
    )
    right = same_scene(read_scenes(images), scenes)
    values = {"psnr": _psnr(images, truth), "change_psnr": _psnr(changed, after)}
    values["changes_right"] = float(same_scene(read_scenes(changed), wanted).float().mean())
    for count in range(5):
        chosen = torch.tensor([len(w.things) == count for w in words])
        values[f"right_{count}"] = float(right[chosen].float().mean())
    run.log("generator-show", **values)
    rows = [torch.cat([a[i : i + 8], b[i : i + 8]]) for a, b in ((images, truth), (changed, after)) for i in (0, 8)]
    run.picture("generator", torch.cat(rows))


def _psnr(images: Tensor, truth: Tensor) -> float:
    return -10 * float((images - truth).square().mean().log10())
