"""Stage 3: the critic of the second world. Its vision tower first learns with throw-away heads, then the whole model
learns to answer Yes or No and to write what it sees and what comes next, and last not to be fooled by smears."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ....core.tensor_file import read_tensors, write_tensors
from ....critics.patches import multiply_patches
from ...training.attention import attend_at_once
from ...training.common import Checkpoint, Run, set_learning_rate
from ...training.critic import HEAD_WEIGHT, CriticWithHeads, make_optimizers, rate_at
from ..models import build_critic, build_processor
from .critic_data import HEADS, YES_NO, Lesson, make_lesson
from .pictures import Pool, make_pool

VISION_STEPS, STEPS, HARDENING_STEPS, POOL = 500, 9000, 1500, 8192
TEXT_WEIGHT = 0.5


def _part(lesson: Lesson, rows: slice) -> Lesson:
    heads = {name: t[rows] for name, t in lesson.heads.items()}
    return Lesson(lesson.images[rows], lesson.questions[rows], lesson.yes, lesson.texts, heads)


def text_loss(critic: CriticWithHeads, lesson: Lesson) -> Tensor:
    """Mean −log P of the tokens of a lesson's texts and of the end after them."""
    end = critic.processor.tokenizer.eos_token
    answers = [f"{text}{end}" for text in lesson.texts]
    longest = max(len(critic.processor.tokenizer(a).input_ids) for a in answers)
    inputs = critic.inputs(lesson, answers)
    logits = critic.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
    wanted = inputs["input_ids"][:, -longest:]
    lengths = torch.tensor([len(critic.processor.tokenizer(a).input_ids) for a in answers])
    counted = torch.arange(longest)[None] >= longest - lengths[:, None]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    return (losses * counted).sum() / counted.sum()


def _keep_pool(run: Run, vae: AutoencoderTiny) -> Pool:
    """The pool of an earlier start, or a new one."""
    kept = run.folder / "critic-pool.safetensors"
    if not kept.exists():
        write_tensors(kept, make_pool(run.steps(POOL), vae, run.generator("critic-pool")).tensors(), {})
    return Pool.of_tensors(read_tensors(kept)[0])


def train_critic(run: Run, vae: AutoencoderTiny) -> CriticWithHeads:
    """Trains the critic, or goes on where an earlier run stopped."""
    torch.manual_seed(run.seed)
    vision_steps, steps = run.steps(VISION_STEPS), run.steps(STEPS)
    critic = CriticWithHeads(build_processor(), build_critic, HEADS)
    multiply_patches(critic)
    attend_at_once(critic)
    critic.model.set_attn_implementation("eager")
    optimizers = make_optimizers(critic)
    checkpoint = Checkpoint(run.folder / "critic.safetensors", {"critic": critic}, optimizers)
    start, end = checkpoint.load(), steps + run.steps(HARDENING_STEPS)
    if start >= end:
        return critic.eval()
    pool = _keep_pool(run, vae)
    for step in range(start, end):
        lesson = make_lesson(pool, run.generator("critic", step), hardened=step >= steps)
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate_at(step, steps, end))
            optimizer.zero_grad()
        values: dict[str, float] = {"step": step + 1}
        with torch.autocast("cpu", torch.bfloat16):
            if step < vision_steps:
                critic.see(lesson)
                loss = critic.head_loss(lesson)
            else:
                judged, written = _part(lesson, slice(YES_NO)), _part(lesson, slice(YES_NO, None))
                said = ["Yes" if yes > 0.5 else "No" for yes in lesson.yes.tolist()]
                log_probs, end_loss = critic.reply(judged, said)
                target = torch.stack([lesson.yes, 1 - lesson.yes], dim=1)
                loss = -(target * log_probs).sum(dim=1).mean() + end_loss + HEAD_WEIGHT * critic.head_loss(judged)
                text = text_loss(critic, written)
                loss = loss + TEXT_WEIGHT * text + HEAD_WEIGHT * 0.25 * critic.head_loss(written)
                values |= {"text": float(text.detach()), **_errors(lesson, log_probs[:, 0].detach().exp())}
        loss.backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0:
            run.log("critic", loss=float(loss.detach()), **values)
        if (step + 1) % 250 == 0 or step + 1 in (steps, end):
            checkpoint.save(step + 1)
    return critic.eval()


def _errors(lesson: Lesson, yes: Tensor) -> dict[str, float]:
    """Mean error of P(Yes) by topic."""
    topics = {"line": "line weight", "depth": "Point", "layout": "red", "facts": ""}
    rest = torch.ones(YES_NO, dtype=torch.bool)
    found = {}
    for name, word in topics.items():
        chosen = rest & torch.tensor([word in q for q in lesson.questions[:YES_NO]])
        rest &= ~chosen
        if chosen.any():
            found[name] = float((yes - lesson.yes)[chosen].abs().mean())
    return found
