"""Stage 5: the trained critic learns to compare two pictures, as an adapter for its language tower.

Its vision tower stays as it is: what it sees of each picture is computed once, and the lessons are about that.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ...critics.loading import load_model
from ...critics.patches import multiply_patches
from ...critics.prompting import with_references
from ...distillation.favourites import LIKENESS
from ..comparing import comparing_processor
from ..questions import STYLE
from ..world import Scenes, random_scenes, render
from .common import Checkpoint, Run, cosine, set_learning_rate
from .critic_data import LOGIT, Pool, add_false_horizons, as_generated, augment, make_lesson, make_pool, worded

STEPS, POOL, RELATED = 2500, 4096, 3  # steps; judged pictures; references that share something with each of them
LESSONS = 192  # batches of the old lessons, so that nothing is forgotten
COMPARED, ASKED = 64, 24  # comparisons and old questions a step
RANK, LEARNING_RATE = 8, 4e-3
TOWER = r".*language_model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def likeness(a: Scenes, b: Scenes) -> Tensor:
    """How alike two batches of scenes are, [B] in (0, 1]: where the horizon is, the colors, what stands there."""
    horizon = torch.exp(-(a.horizon - b.horizon).abs() / 0.2)
    object_ = torch.where(a.object == b.object, 1.0, 0.3)
    return 0.4 * horizon + 0.45 * torch.exp(-_color_distance(a, b) / 0.2) + 0.15 * object_


def style_logit(a: Scenes, b: Scenes) -> Tensor:
    """Log odds [B] that two batches of scenes have one style: by their colors alone."""
    return (LOGIT - 20 * (_color_distance(a, b) - 0.02).clamp(min=0)).clamp(min=-5)


def _color_distance(a: Scenes, b: Scenes) -> Tensor:
    return (a.colors - b.colors).abs().mean(dim=(1, 2))


def grade_shares(likeness: Tensor) -> Tensor:
    """The P of the grades 1 to 5, [B, 5], whose expected grade is 1 + 4 · likeness: that of its two neighbours."""
    place = 4 * likeness[:, None]
    return (1 - (place - torch.arange(5)).abs()).clamp(min=0)


def related(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Other scenes, each of which shares the colors, the horizon or the object with one of `scenes` half the time."""
    count = len(scenes)
    other = random_scenes(count, generator, free_palette=0.15)

    def half() -> Tensor:
        return torch.rand(count, generator=generator) < 0.5

    colors, horizon, thing = half(), half(), half()
    near = (scenes.horizon + 0.03 * torch.randn(count, generator=generator)).clamp(0.1, 0.9)
    return replace(
        other,
        colors=torch.where(colors[:, None, None], scenes.colors, other.colors),
        object_light=torch.where(colors, scenes.object_light, other.object_light),
        horizon=torch.where(horizon, near, other.horizon),
        object=torch.where(thing, scenes.object, other.object),
        object_x=torch.where(thing, scenes.object_x, other.object_x),
        object_size=torch.where(thing, scenes.object_size, other.object_size),
    )


class Seen:
    """Pictures as the vision tower sees them, and what is in them.

    Attributes:
        tokens: of the judged pictures, [N, 16, width].
        first, second, share: each picture is its first scene, of which the second covers a share [N] in [0, 1].
        references: tokens of their references, [RELATED, N, 16, width], and `scenes` of these, RELATED of N.
        lessons: tokens [M, 16, width], questions and P(Yes) [M] of what the critic has learnt before.
    """

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, vae: AutoencoderTiny, run: Run
    ) -> None:
        generator, count = run.generator("comparing-pool"), run.steps(POOL)
        pool = make_pool(count, vae, generator)
        self.first, self.second = pool.scenes, related(pool.scenes, generator)
        tokens, shares = [], []
        for start in range(0, len(pool.images), 64):
            chosen = torch.arange(start, min(start + 64, len(pool.images)))
            images, share = _in_part(pool, self.second, chosen, generator)
            tokens.append(see(model, processor, augment(add_false_horizons(images, generator), generator)))
            shares.append(share)
        self.tokens, self.share = torch.cat(tokens), torch.cat(shares)
        self.scenes = [related(pool.scenes, generator) for _ in range(RELATED)]
        self.references = torch.stack(
            [
                torch.cat(
                    [
                        see(model, processor, as_generated(render(scenes.select(part)), vae, generator))
                        for part in torch.arange(len(scenes.horizon)).split(64)
                    ]
                )
                for scenes in self.scenes
            ]
        )
        lessons = [make_lesson(pool, generator, hardened=True) for _ in range(run.steps(LESSONS))]
        self.lessons = torch.cat([see(model, processor, lesson.images) for lesson in lessons])
        self.questions = [question for lesson in lessons for question in lesson.questions]
        self.yes = torch.cat([lesson.yes for lesson in lessons])


def _in_part(pool: Pool, second: Scenes, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 112, 112], a third of which are in part another scene, and the part of it, [B]."""
    count = len(chosen)
    images = pool.images[chosen].float() / 255
    mixed = torch.rand(count, generator=generator) < 0.35
    even = torch.rand(count, 1, generator=generator).expand(-1, 7)
    rows = torch.where(torch.rand(count, 1, generator=generator) < 0.5, even, torch.rand(count, 7, generator=generator))
    rows = torch.where(mixed[:, None], rows, 0.0).repeat_interleave(images.shape[-2] // 7, dim=1)
    other = render(second.select(chosen))
    difference = (other - images).abs().mean(dim=(1, 3))
    share = (difference * rows).sum(dim=1) / difference.sum(dim=1).clamp(min=1e-6)
    return torch.lerp(images, other, rows[:, None, :, None]), share


@torch.no_grad()
def see(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, images: Tensor) -> Tensor:
    """The visual tokens [B, 16, width] of pictures [B, 3, H, W] in [0, 1]."""
    seen = processor.image_processor(images=list(images), do_rescale=False, return_tensors="pt")
    found = model.model.get_image_features(seen["pixel_values"], seen["image_grid_thw"])
    return torch.stack(list(found.pooler_output))


class Language:
    """The language tower, asked about visual tokens.

    Args:
        model: with the adapter.
    """

    def __init__(self, model: PeftModel, processor: Qwen2_5_VLProcessor) -> None:
        self.model, self.processor = model, processor
        self.tokenizer = processor.tokenizer
        self.placeholder = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def reply(self, tokens: Tensor, texts: list[str], said: list[str]) -> Tensor:
        """log P of the token behind each prompt and the one behind what was `said`, [B, 2, vocabulary].

        Args:
            tokens: of each text's pictures, [B, pictures, 16, width].
        """
        return self._replied(tokens, texts, said, 2)[1]

    def written(self, tokens: Tensor, texts: list[str], answers: list[str]) -> Tensor:
        """Mean −log P of the words of what is to be written, and of the end behind them."""
        ended = [f"{answer}{self.tokenizer.eos_token}" for answer in answers]
        lengths = torch.tensor([len(self.tokenizer(text).input_ids) for text in ended])
        longest = int(lengths.max())
        ids, log_probs = self._replied(tokens, texts, ended, longest + 1)
        losses = F.nll_loss(log_probs[:, :-1].transpose(1, 2), ids[:, -longest:], reduction="none")
        counted = torch.arange(longest)[None] >= longest - lengths[:, None]
        return (losses * counted).sum() / counted.sum()

    def _replied(self, tokens: Tensor, texts: list[str], said: list[str], last: int) -> tuple[Tensor, Tensor]:
        """The tokens [B, L] of prompts with what was said, and log P of those behind the last ones [B, last, V]."""
        pictures = [{"type": "image"}] * tokens.shape[1]
        chats = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}], add_generation_prompt=True
            ).replace("<|image_pad|>", "<|image_pad|> " * tokens.shape[2])
            + answer
            for text, answer in zip(texts, said, strict=True)
        ]
        inputs = self.tokenizer(chats, padding=True, return_tensors="pt")
        ids = inputs["input_ids"]
        embedded = self.model.get_input_embeddings()(ids)
        is_image = (ids == self.placeholder)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(is_image, tokens.to(embedded.dtype))
        grids = torch.tensor([[1, 8, 8]]).expand(tokens.shape[0] * tokens.shape[1], -1)
        positions, _ = self.model.base_model.model.model.get_rope_index(
            ids, mm_token_type_ids=(ids == self.placeholder).int(), image_grid_thw=grids,
            attention_mask=inputs["attention_mask"],
        )  # fmt: skip
        replied = self.model(
            inputs_embeds=embedded,
            attention_mask=inputs["attention_mask"],
            position_ids=positions,
            logits_to_keep=last,
        )
        return ids, replied.logits.float().log_softmax(dim=-1)

    def loss(self, tokens: Tensor, texts: list[str], answers: list[str], shares: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the answers' P, [B, A], with the shares they should have; log P, [B, A]."""
        said = [answers[int(best)] for best in shares.argmax(dim=1)]
        replied = self.reply(tokens, texts, said)
        log_probs = replied[:, 0, self.tokenizer.convert_tokens_to_ids(answers)]
        ends = -replied[:, 1, self.tokenizer.eos_token_id].mean()
        return -(shares * log_probs).sum(dim=1).mean() + ends, log_probs.detach()


def train_comparing(run: Run, critic: Path, vae: AutoencoderTiny) -> PeftModel:
    """Trains the adapter of the critic in a folder, or goes on where an earlier run stopped."""
    torch.manual_seed(run.seed)
    processor = comparing_processor()
    base = load_model(critic, torch.device("cpu"), torch.float32, None)
    multiply_patches(base)
    base.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    words = ["embed_tokens", "lm_head"]  # the new ones have rows of their own
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TOWER, modules_to_save=words))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = Checkpoint(run.folder / "comparing.safetensors", {"adapter": model}, [optimizer])
    start, end = checkpoint.load(), run.steps(STEPS)
    if start >= end:
        return model.eval()
    seen = Seen(base, processor, vae.to(memory_format=torch.channels_last), run)  # twice as fast
    language = Language(model, processor)
    for step in range(start, end):
        set_learning_rate(optimizer, cosine(step, end))
        optimizer.zero_grad()
        loss, report = _lesson(language, seen, run.generator("comparing", step))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            run.log("comparing", step=step + 1, **report)
        if (step + 1) % 500 == 0 or step + 1 == end:
            checkpoint.save(step + 1)
    return model.eval()


def _lesson(language: Language, seen: Seen, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """One batch of comparisons and one of old questions: the loss, and errors to report."""
    random = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    judged = torch.randint(len(seen.tokens), (COMPARED,), generator=generator)
    of = int(random.integers(RELATED))
    shown = torch.where(  # one picture in four has another's reference
        torch.rand(COMPARED, generator=generator) < 0.75, judged, judged[torch.randperm(COMPARED, generator=generator)]
    )
    tokens = torch.stack([seen.tokens[judged], seen.references[of][shown]], dim=1)
    first, second, reference = seen.first.select(judged), seen.second.select(judged), seen.scenes[of].select(shown)
    share, half = seen.share[judged], COMPARED // 2
    alike = torch.lerp(likeness(first, reference), likeness(second, reference), share)[:half]
    style = torch.sigmoid(torch.lerp(style_logit(first, reference), style_logit(second, reference), share))[half:]
    graded, grades = language.loss(
        tokens[:half], [with_references(LIKENESS.text, 1)] * half, [*LIKENESS.grades], grade_shares(alike)
    )
    yes_no = torch.stack([style, 1 - style], dim=1)
    texts = [with_references(worded(str(random.choice(STYLE)), random), 1) for _ in range(half)]
    styled, answers = language.loss(tokens[half:], texts, ["Yes", "No"], yes_no)
    old = torch.randint(len(seen.lessons), (ASKED,), generator=generator)
    p = seen.yes[old]
    asked, before = language.loss(
        seen.lessons[old][:, None], [seen.questions[i] for i in old.tolist()], ["Yes", "No"], torch.stack([p, 1 - p], 1)
    )
    expected = (F.softmax(grades, dim=1) * torch.arange(5)).sum(dim=1) / 4
    return graded + styled + asked, {
        "alike": float((expected - alike).abs().mean()),
        "correlation": float(torch.corrcoef(torch.stack([expected, alike]))[0, 1]),
        "style": float((answers[:, 0].exp() - style).abs().mean()),
        "before": float((before[:, 0].exp() - p).abs().mean()),
    }
