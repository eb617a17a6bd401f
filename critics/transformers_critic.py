"""One critic for every image-text-to-text model in transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distillation.errors import CriticError
from ..distillation.fingerprint import weights_sha256
from ..distillation.interfaces import AskedQuestion, ModelInfo
from .loading import (
    check_folder,
    choose_device,
    choose_dtype,
    find_folder,
    load_model,
    load_processor,
    quiet_transformers,
)
from .preprocessing import check_images, check_shapes, place, preprocess, repeat_each
from .prompting import Asked, Prompts, build_prompts

CACHED_PROMPTS = 64  # combinations of questions and image size


def load_critic(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    *,
    download: bool = False,
    trust_remote_code: bool = False,
) -> TransformersCritic:
    """Loads a frozen critic from a model folder.

    Args:
        path: a local folder as transformers writes it, or a Hugging Face id.
        device: None is cuda if there is one, else cpu.
        dtype: None is bfloat16 on cuda, else float32.
        quantization: None, "8bit" or "4bit" (both need bitsandbytes).
        download: whether a Hugging Face id may be fetched; otherwise only what was fetched before is used.
        trust_remote_code: whether Python code that lies in the model folder may run.

    Raises:
        CriticError: the folder, its parts or the settings cannot make a critic; the message says which and why.
    """
    chosen = choose_device(device)
    precision = choose_dtype(dtype, chosen)
    folder = find_folder(path, download)
    with quiet_transformers():
        check_folder(folder, trust_remote_code)
        processor = load_processor(folder, trust_remote_code)
        model = load_model(folder, chosen, precision, quantization, trust_remote_code)
    name = folder.resolve().name if Path(path).is_dir() else str(path)
    return TransformersCritic(model, processor, name)


class TransformersCritic:
    """A frozen vision-language model with its own chat template and its own image processor."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model = model
        self.processor = processor
        self._name = name
        self._accepted = inspect.signature(model.forward).parameters
        # Bound to the processor and not to self, so that dropping the critic frees the model at once.
        self._prompts = lru_cache(maxsize=CACHED_PROMPTS)(partial(build_prompts, processor))

    @cached_property
    def info(self) -> ModelInfo:
        """Name, class, dtype and weight hash; the hash is computed when first asked for."""
        method = getattr(self.model, "quantization_method", None)
        dtype = str(self.model.dtype).removeprefix("torch.") + (f", {method}" if method else "")
        return ModelInfo(
            name=self._name,
            architecture=type(self.model).__name__,
            dtype=dtype,
            weights_sha256=weights_sha256(self.model.named_parameters()),
        )

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question): the sum over the answer's tokens, without an end of sequence.

        Args:
            images: [B, 3, H, W], floats in [0, 1].
            questions: Q objects with `text` and `answer`.

        Returns:
            [B, Q], float32 (float64 for a float64 model), on the images' device, differentiable in `images`.

        Raises:
            CriticError: images of another shape, dtype or range, no question, an empty one, or an answer that the
                tokenizer makes nothing of.
        """
        check_images(images)
        asked = tuple(_check_question(question) for question in questions)
        if not asked:
            raise CriticError("Expected at least one question, got none.")
        prompts = self._prompts(asked, *images.shape[-2:], self.model.device)
        logits = self._answer_logits(self._inputs(images, prompts), prompts.targets.shape[1])
        return _sum_log_probability(logits, prompts, len(images)).to(images.device)

    @torch.no_grad()
    def answer(self, images: Tensor, text: str, max_new_tokens: int = 16) -> list[str]:
        """The most likely reply, token by token, to one question about each of images [B, 3, H, W] in [0, 1].

        Raises:
            CriticError: images of another shape, dtype or range, an empty question, or less than one token asked for.
        """
        check_images(images)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise CriticError(f"Expected max_new_tokens of at least 1, got {max_new_tokens!r}.")
        prompts = self._prompts(((_check_text(text), None),), *images.shape[-2:], self.model.device)
        # `generate` refuses what the model does not name, such as a generic tokenizer's token_type_ids.
        inputs = {name: v for name, v in self._inputs(images, prompts).items() if name in self._accepted}
        replies = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = replies[:, inputs["input_ids"].shape[1] :]
        return [reply.strip() for reply in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, images: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        """Everything that the processor returns, for B · Q pairs: image 0 with each question, image 1 with each …"""
        pixels = preprocess(self.processor.image_processor, images)
        check_shapes(pixels, prompts.image_shapes, len(images))
        pixels = place(pixels, list(prompts.image_shapes), self.model.device, self.model.dtype)
        questions = len(prompts.targets)
        image_side = {name: repeat_each(value, len(images), questions) for name, value in pixels.items()}
        text_side = {name: value.repeat(len(images), *[1] * (value.ndim - 1)) for name, value in prompts.inputs.items()}
        return text_side | image_side

    def _answer_logits(self, inputs: dict[str, Tensor], length: int) -> Tensor:
        """Logits [B · Q, A, vocabulary] at the positions from which the last `length` tokens are predicted."""
        keep = {"logits_to_keep": length} if "logits_to_keep" in self._accepted else {}
        return self.model(**inputs, **keep, use_cache=False).logits[:, -length:]


def _check_question(question: AskedQuestion) -> Asked:
    text, answer = _check_text(question.text), question.answer
    if not isinstance(answer, str) or not answer.strip():
        raise CriticError(f"Expected an answer of at least one word to {text!r}, got {answer!r}.")
    return text, answer


def _check_text(text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise CriticError(f"Expected a question of at least one word, got {text!r}.")
    return text


def _sum_log_probability(logits: Tensor, prompts: Prompts, images: int) -> Tensor:
    """log P of the answers, [B, Q], from logits [B · Q, A, vocabulary]."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    scores = torch.log_softmax(logits, dim=-1, dtype=precise).unflatten(0, (images, -1))  # [B, Q, A, vocabulary]
    targets = prompts.targets.to(logits.device).expand(images, -1, -1)  # [B, Q, A]
    chosen = scores.gather(-1, targets[..., None])[..., 0]
    return chosen.masked_fill(~prompts.is_answer.to(logits.device), 0).sum(dim=-1)
