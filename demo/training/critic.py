"""Stage 3: the critic. Its vision tower first learns with throw-away heads, then the whole model learns to answer,
and last it learns not to be fooled by false horizons."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from ..models import build_critic, build_processor
from ..questions import all_texts
from ..tokenizer import critic_tokenizer
from .common import Checkpoint, Run, cosine, set_learning_rate
from .critic_data import HEADS, Lesson, make_lesson, make_pool

VISION_STEPS, STEPS, HARDENING_STEPS, POOL = 500, 1900, 1400, 9216
HEAD_WEIGHT = 0.15


class CriticWithHeads(nn.Module):
    """A critic and linear heads on its flattened visual tokens."""

    def __init__(
        self,
        processor: Qwen2_5_VLProcessor,
        build: Callable[[int, dict[str, int]], Qwen2_5_VLForConditionalGeneration] = build_critic,
        heads: Mapping[str, int] = HEADS,
    ) -> None:
        super().__init__()
        self.processor = processor
        tokenizer = processor.tokenizer
        self.model: Qwen2_5_VLForConditionalGeneration = build(len(tokenizer), tokenizer.get_vocab())
        self.heads = nn.ModuleDict({name: nn.Linear(16 * 128, classes) for name, classes in heads.items()})
        self.norm = nn.LayerNorm(16 * 128)
        self.answers = tokenizer.convert_tokens_to_ids(["Yes", "No"])
        self.end = tokenizer.eos_token_id
        self._seen: Tensor | None = None
        self.model.model.visual.merger.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._seen = output

    def head_loss(self, lesson: Lesson) -> Tensor:
        """Mean cross entropy of the heads on the visual tokens of the last forward."""
        assert self._seen is not None
        seen = self.norm(self._seen.float().reshape(len(lesson.images), -1))
        losses = [F.cross_entropy(self.heads[n](seen), t) for n, t in lesson.heads.items() if (t >= 0).any()]
        return torch.stack(losses).mean()

    def inputs(self, lesson: Lesson, said: list[str]) -> dict[str, Tensor]:
        def chat(question: str, answer: str) -> str:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(messages, add_generation_prompt=True) + answer

        return self.processor(
            text=[chat(q, a) for q, a in zip(lesson.questions, said, strict=True)],
            images=list(lesson.images),
            do_rescale=False,
            padding=True,
            return_tensors="pt",
        )

    def see(self, lesson: Lesson) -> None:
        """Runs the vision tower alone."""
        pixels = self.processor.image_processor(images=list(lesson.images), do_rescale=False, return_tensors="pt")
        self.model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"])

    def reply(self, lesson: Lesson, said: list[str]) -> tuple[Tensor, Tensor]:
        """log P(Yes) and log P(No) after each prompt, [B, 2]; mean −log P(end) after what was `said`."""
        log_probs = self.model(**self.inputs(lesson, said), logits_to_keep=2).logits.float().log_softmax(dim=-1)
        return log_probs[:, 0, self.answers], -log_probs[:, 1, self.end].mean()


def make_optimizers(critic: CriticWithHeads) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the blocks, AdamW on everything else."""
    matrices = {
        name: p
        for name, p in critic.model.named_parameters()
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name
    }
    chosen = set(map(id, matrices.values()))
    rest = [p for p in critic.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices.values(), lr=3e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate_at(step: int, steps: int, end: int) -> float:
    """Share of the learning rate: a cosine over `steps`, then a lower one until `end`, while the critic is hardened."""
    if step < steps:
        return cosine(step, steps, warmup=100)
    return 0.3 * cosine(step - steps, end - steps, warmup=20)


def train_critic(run: Run, vae: AutoencoderTiny) -> CriticWithHeads:
    """Trains the critic, or goes on where an earlier run stopped."""
    torch.manual_seed(run.seed)
    vision_steps, steps = run.steps(VISION_STEPS), run.steps(STEPS)
    critic = CriticWithHeads(build_processor(critic_tokenizer(all_texts())))
    optimizers = make_optimizers(critic)
    checkpoint = Checkpoint(run.folder / "critic.safetensors", {"critic": critic}, optimizers)
    start, end = checkpoint.load(), steps + run.steps(HARDENING_STEPS)
    if start >= end:
        return critic.eval()
    pool = make_pool(run.steps(POOL), vae, run.generator("critic-pool"))
    for step in range(start, end):
        lesson = make_lesson(pool, run.generator("critic", step), hardened=step >= steps)
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate_at(step, steps, end))
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if step < vision_steps:
                critic.see(lesson)
                log_probs, loss = None, critic.head_loss(lesson)
            else:
                said = ["Yes" if yes > 0.5 else "No" for yes in lesson.yes.tolist()]
                log_probs, end_loss = critic.reply(lesson, said)
                target = torch.stack([lesson.yes, 1 - lesson.yes], dim=1)
                loss = -(target * log_probs).sum(dim=1).mean() + end_loss + HEAD_WEIGHT * critic.head_loss(lesson)
        loss.backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            _report(run, step + 1, lesson, log_probs, float(loss.detach()))
        if (step + 1) % 250 == 0 or step + 1 == end:
            checkpoint.save(step + 1)
    return critic.eval()


def _report(run: Run, step: int, lesson: Lesson, log_probs: Tensor | None, loss: float) -> None:
    """Logs the excess loss over the labels' own entropy and the mean error of P(Yes), by topic."""
    values = {"step": step, "loss": loss}
    if log_probs is not None:
        yes, wanted = log_probs[:, 0].detach().exp(), lesson.yes
        for topic, word in (("horizon", "red line"), ("palette", "palette"), ("night", "night"), ("there", "show")):
            chosen = torch.tensor([word in q.lower() for q in lesson.questions])
            if chosen.any():
                values[topic] = float((yes - wanted)[chosen].abs().mean())
    run.log("critic", **values)
