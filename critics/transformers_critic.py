"""One critic for every image-text-to-text model in transformers."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.devices import choose_device
from ..core.errors import CriticError
from ..core.fingerprint import weights_sha256
from ..core.picture import Picture
from ..core.protocols import AskedQuestion, ModelInfo
from ..core.quantization import quantization_of
from ..core.quiet import quiet_loading
from ..core.residency import visiting
from ..core.sizes import ModelSize
from ..core.streaming import Offload, Stream, check_offload
from .checkpointing import checkpointed_layers
from .loading import (
    check_folder,
    choose_dtype,
    empty_model,
    find_folder,
    load_model,
    load_processor,
)
from .patches import multiply_patches
from .preprocessing import (
    check_images,
    check_max_size,
    check_shapes,
    place,
    preprocess,
    reference,
    repeat_each,
    shrunk,
    take_small_images,
)
from .prompting import Encoded, Prompts, check_question, check_reply_length, check_text, encode, pad, references_of
from .shared_prefix import SharedPrompts, can_share, share, shared_attention
from .sizes import critic_size

CACHED_PROMPTS = 64  # combinations of questions and image size

log = logging.getLogger(__name__)


def load_critic(
    path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    *,
    offload: Offload = False,
    gradient_checkpointing: bool = False,
    max_size: int | None = None,
    download: bool = False,
    trust_remote_code: bool = False,
) -> TransformersCritic:
    """Loads a frozen critic from a model folder.

    Args:
        path: a local folder as transformers writes it, or a Hugging Face id.
        device: None is cuda if there is one, else cpu.
        dtype: None is float32 on the CPU, else bfloat16.
        quantization: None, "8bit" or "4bit" (both need bitsandbytes).
        offload: whether the weights wait in main memory and come to `device` only while the critic works, or with
            "blocks" each block's only while that block works (with `gradient_checkpointing`, or the graph would keep
            them).
        gradient_checkpointing: whether the backward pass computes each layer again: less memory, a third more time.
        max_size: pictures of more pixels than this number squared are shrunk to it before the critic's own image
            processor sees them: less memory and time, slightly other answers. None: as the processor does it.
        download: whether a Hugging Face id may be fetched; otherwise only what was fetched before is used.
        trust_remote_code: whether Python code that lies in the model folder may run.

    Raises:
        CriticError: the folder, its parts or the settings cannot make a critic; the message says which and why.
    """
    chosen = choose_device(device, CriticError)
    precision = choose_dtype(dtype, chosen)
    check_offload(offload, CriticError)
    check_max_size(max_size)
    folder = find_folder(path, download)
    with quiet_loading():
        check_folder(folder, trust_remote_code)
        processor = load_processor(folder, trust_remote_code)
        if max_size is not None:
            take_small_images(processor.image_processor, max_size)
        home = torch.device("cpu") if offload else chosen
        model = load_model(folder, home, precision, quantization, trust_remote_code)
    name = folder.resolve().name if Path(path).is_dir() else str(path)
    return TransformersCritic(
        model,
        processor,
        name,
        device=chosen,
        gradient_checkpointing=gradient_checkpointing,
        by_block=offload == "blocks",
        max_size=max_size,
    )


def without_weights(
    path: str | Path, dtype: str | torch.dtype | None = None, *, trust_remote_code: bool = False
) -> TransformersCritic:
    """A critic from a folder's configurations alone, for its `size`: it can judge nothing.

    Args:
        path: as for `load_critic`; the weights need not be there.
        dtype: of the weights that it doesn't have; None is bfloat16.

    Raises:
        CriticError: the folder or its parts cannot make a critic.
    """
    folder = find_folder(path, download=False)
    device = torch.device("cpu")
    with quiet_loading():
        processor = load_processor(folder, trust_remote_code)
        model = empty_model(folder, choose_dtype(dtype or torch.bfloat16, device), trust_remote_code)
    return TransformersCritic(model, processor, folder.name, device=device)


class TransformersCritic:
    """A frozen vision-language model with its own chat template and its own image processor.

    Args:
        model: an image-text-to-text model, frozen and in eval mode.
        processor: its processor, see `loading.load_processor`.
        name: what a LoRA's metadata calls it.
        device: where it computes; None is where the model lies. A model that lies elsewhere comes to this device only
            while it works.
        gradient_checkpointing: whether the backward pass computes each layer again.
        by_block: whether a model that lies elsewhere comes block by block.
        max_size: larger pictures are shrunk to this many pixels squared first; None leaves them as they are.

    Attributes:
        share_prefix: whether several questions about one image are asked in one sequence (the default), where the
            model's family allows it; otherwise each question is a row of its own. The values are the same.
        offload, gradient_checkpointing: see `load_critic`; `arrange` and `arranged` set them.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        *,
        device: torch.device | None = None,
        gradient_checkpointing: bool = False,
        by_block: bool = False,
        max_size: int | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.device = model.device if device is None else device
        self.share_prefix = True
        self._name = name
        self.gradient_checkpointing = gradient_checkpointing
        self.offload: Offload = "blocks" if by_block else model.device != self.device
        self._stream: Stream | None = None
        self._max_size = max_size
        self._at_hand = False
        multiply_patches(model)
        self._accepted = inspect.signature(model.forward).parameters
        # Bound to the processor and not to self, so that dropping the critic frees the model at once.
        self._encode = lru_cache(maxsize=CACHED_PROMPTS)(partial(encode, processor))

    @cached_property
    def info(self) -> ModelInfo:
        """Name, class, dtype and weight hash; the hash is computed when first asked for."""
        dtype = ", ".join(filter(None, (quantization_of(self.model), str(self.model.dtype).removeprefix("torch."))))
        return ModelInfo(
            name=self._name,
            architecture=type(self.model).__name__,
            dtype=dtype,
            weights_sha256=weights_sha256(self.model.named_parameters()),
            settings="" if self._max_size is None else f"sees at most {self._max_size}² pixels",
        )

    def arrange(self, offload: Offload, gradient_checkpointing: bool) -> None:
        """From now on the weights lie, and layers are computed again, as `load_critic` says of these arguments."""
        self.model.to("cpu" if offload else self.device)
        self.offload, self.gradient_checkpointing, self._stream = offload, gradient_checkpointing, None

    @contextmanager
    def resident(self) -> Iterator[None]:
        """While entered, the weights, or with "blocks" those of the block that works, are on `device`."""
        if self._at_hand:  # entered already: a walk over all modules for nothing
            yield
            return
        with self._by_block() if self.offload == "blocks" else visiting([self.model], self.device):
            self._at_hand = True
            try:
                yield
            finally:
                self._at_hand = False

    def _by_block(self) -> AbstractContextManager[None]:
        self._stream = self._stream or Stream(self.model, self.device)
        return self._stream.running()

    @contextmanager
    def arranged(self, offload: Offload | None = None, gradient_checkpointing: bool | None = None) -> Iterator[None]:
        """While entered, the critic works by these settings, see `load_critic`; None leaves one as it is.

        With `offload` False the weights stay on the device for as long as this is entered. Weights that lie there
        anyway, as quantised ones do, stay there whatever `offload` is, which is said.

        Raises:
            CriticError: `offload` is none of its values.
        """
        before = self.offload, self.gradient_checkpointing
        if gradient_checkpointing is not None:
            self.gradient_checkpointing = gradient_checkpointing
        if offload is not None:
            check_offload(offload, CriticError)
            self.offload = offload
            if offload and self.model.device == self.device != torch.device("cpu"):
                log.warning("The critic %s stays on %s, where its weights lie.", self._name, self.device)
        try:
            with self.resident() if self.offload is False else nullcontext():
                yield
        finally:
            self.offload, self.gradient_checkpointing = before
            if self.offload != "blocks":
                self._stream = None  # and the memory that it has pinned

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question): the sum over the answer's tokens, without an end of sequence.

        If the weights lie elsewhere than on `device`, make the backward pass inside `resident()`, too.

        Args:
            images: [B, 3, H, W], floats in [0, 1].
            questions: Q objects with `text`, `answer` and `references`; these are the same for all.

        Returns:
            [B, Q], float32 (float64 for a float64 model), on the images' device, differentiable in `images`.

        Raises:
            CriticError: images of another shape, dtype or range, no question, an empty one, one that is longer than
                the model's context, an answer that the tokenizer makes nothing of, or references that differ or that
                the model's family cannot be shown.
        """
        check_images(images)
        asked = [check_question(question) for question in questions]
        if not asked:
            raise CriticError("Expected at least one question, got none.")
        images = shrunk(images, self._max_size)
        beside = [reference(picture, self._max_size) for picture in references_of(questions)]
        rows = [self._encoded(text, answer, images, beside) for text, answer in asked]
        with self.resident(), checkpointed_layers(self.model) if self.gradient_checkpointing else nullcontext():
            shared = self._share(rows)
            if shared is None:
                prompts = pad(rows, self.processor.tokenizer, self.device)
                logits = self._logits(self._inputs(images, prompts, beside), prompts.targets.shape[1])
                scores = _rate_rows(logits, prompts, len(images))
            else:
                with shared_attention(self.model, shared):
                    logits = self._logits(self._inputs(images, shared, beside), shared.predicting)
                scores = _rate_shared(logits, shared, len(rows))
            return scores.to(images.device)

    def size(
        self, height: int, width: int, questions: Sequence[AskedQuestion], samples: int = 1, bits: str | None = None
    ) -> ModelSize:
        """What judging takes on the device, for so many pictures of height × width pixels; the weights aren't read.

        Args:
            bits: what the weights would be quantised to: None (as they are), "8bit" or "4bit".

        Raises:
            CriticError: an empty question or answer, or one that the model's context is too short for.
        """
        pixels = torch.empty(1, 3, height, width, device="meta")
        beside = [reference(picture, self._max_size) for picture in references_of(questions)]
        rows = [self._encoded(*check_question(question), pixels, beside) for question in questions]
        shared = self._share(rows)
        lengths = [row.text_side["input_ids"].shape[1] for row in rows]
        tokens = sum(lengths) if shared is None else shared.inputs["input_ids"].shape[1]
        return critic_size(self.model, rows[0].image_shapes, tokens, samples, bits)

    def unknown_words(self, text: str) -> list[str]:
        """Words that the tokenizer has no piece for, so that the model cannot read them; most tokenizers know all."""
        tokenizer = self.processor.tokenizer
        unknown = tokenizer.unk_token_id
        words = dict.fromkeys(re.findall(r"\w+", text)) if unknown is not None else {}
        return [word for word in words if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]

    @torch.no_grad()
    def answer(
        self, images: Tensor, text: str, max_new_tokens: int = 16, references: Sequence[Picture] = ()
    ) -> list[str]:
        """The most likely reply, token by token, to one question about each of images [B, 3, H, W] in [0, 1].

        Behind each image the references are shown.

        Raises:
            CriticError: images of another shape, dtype or range, an empty question, or less than one token asked for.
        """
        check_images(images)
        check_reply_length(max_new_tokens)
        images = shrunk(images, self._max_size)
        beside = [reference(picture, self._max_size) for picture in references]
        prompts = pad([self._encoded(check_text(text), None, images, beside)], self.processor.tokenizer, self.device)
        with self.resident():
            # `generate` refuses what the model does not name, such as a generic tokenizer's token_type_ids.
            inputs = {name: v for name, v in self._inputs(images, prompts, beside).items() if name in self._accepted}
            replies = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = replies[:, inputs["input_ids"].shape[1] :]
        return [reply.strip() for reply in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _encoded(self, text: str, answer: str | None, images: Tensor, references: Sequence[Tensor]) -> Encoded:
        row = self._encode(text, answer, tuple(tuple(image.shape[-2:]) for image in (images, *references)))
        length = row.text_side["input_ids"].shape[1]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length > limit:
            fewer = f", or fewer than {len(references)} references" if references else ""
            raise CriticError(
                f"The question with its pictures takes {length} tokens, but the critic's context ends at {limit}. "
                f"Shorten the question {text[:60]!r}, or show smaller images (max_size) than "
                f"{images.shape[-1]}×{images.shape[-2]}{fewer}."
            )
        return row

    def _share(self, rows: Sequence[Encoded]) -> SharedPrompts | None:
        """The questions in one sequence, if there are several and the model's family can take them so."""
        if len(rows) == 1 or not (self.share_prefix and can_share(self.model) and "logits_to_keep" in self._accepted):
            return None
        config = self.model.config
        image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        return share(rows, image_token, self.device)

    def _inputs(
        self, images: Tensor, prompts: Prompts | SharedPrompts, references: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Everything that the processor returns: image 0 with each row of the prompts, image 1 with each …"""
        pixels = preprocess(self.processor.image_processor, images, references)
        check_shapes(pixels, prompts.image_shapes, len(images))
        pixels = place(pixels, list(prompts.image_shapes), self.device, self.model.dtype)
        rows = len(prompts.inputs["input_ids"])
        image_side = {name: repeat_each(value, len(images), rows) for name, value in pixels.items()}
        text_side = {name: value.repeat(len(images), *[1] * (value.ndim - 1)) for name, value in prompts.inputs.items()}
        return text_side | image_side

    def _logits(self, inputs: dict[str, Tensor], positions: int | Tensor) -> Tensor:
        """Logits [rows, N, vocabulary] at `positions` [N], or at the last N = `positions`."""
        keep = {"logits_to_keep": positions} if "logits_to_keep" in self._accepted else {}
        logits = self.model(**inputs, **keep, use_cache=False).logits
        return logits[:, -positions:] if isinstance(positions, int) else logits


def _rate_rows(logits: Tensor, prompts: Prompts, images: int) -> Tensor:
    """log P of the answers, [B, Q], from logits [B · Q, A, vocabulary]."""
    scores = _log_softmax(logits).unflatten(0, (images, -1))  # [B, Q, A, vocabulary]
    targets = prompts.targets.to(logits.device).expand(images, -1, -1)  # [B, Q, A]
    chosen = scores.gather(-1, targets[..., None])[..., 0]
    return chosen.masked_fill(~prompts.is_answer.to(logits.device), 0).sum(dim=-1)


def _rate_shared(logits: Tensor, prompts: SharedPrompts, questions: int) -> Tensor:
    """log P of the answers, [B, Q], from logits [B, T, vocabulary]."""
    scores = _log_softmax(logits)
    targets = prompts.targets.to(logits.device).expand(len(logits), -1)
    chosen = scores.gather(-1, targets[..., None])[..., 0]  # [B, T]
    return chosen.new_zeros(len(logits), questions).index_add(1, prompts.question.to(logits.device), chosen)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
