# pyright: reportMissingImports=false
"""A critic out of a CLIP that ComfyUI has loaded: the text encoder of many image models is a vision-language model.

The very weights that encode prompts judge the pictures, so no second copy is loaded. Nothing of the CLIP is changed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..distillation.errors import CriticError, StopRequested
from ..distillation.fingerprint import weights_sha256
from ..distillation.interfaces import AskedQuestion, ModelInfo
from .comfy_differentiable import differentiable
from .preprocessing import check_images
from .prompting import check_question, check_text

MIN_PIXELS = 256 * 256
MAX_PIXELS = 1024 * 1024
COMFY_MAX_PIXELS = 12_845_056  # ComfyUI shrinks a Qwen3-VL's larger pictures by itself
CACHED_PROMPTS = 64

log = logging.getLogger(__name__)


class Family(Protocol):
    """What a family of models has of its own. `model` is ComfyUI's module of the whole model."""

    name: str
    image_token: int

    def prompt(self, tokenizer: Any, text: str) -> str:
        """The model's chat template around one image and a question, up to where the model's turn begins."""
        ...

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """Height and width at which the model sees a picture; ComfyUI leaves a picture of this size as it is."""
        ...

    def blocks(self, model: Any) -> list[nn.Module]:
        """The parts that hold nearly all of the weights, each small beside the whole."""
        ...

    def vision_output(self, model: Any) -> nn.Module:
        """The last layer that a picture passes on its way to the language model."""
        ...

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]]) -> dict[str, Any]:
        """What the language model has to know of the image among the embeddings [1, L, D]."""
        ...

    def corrected(self, model: Any) -> AbstractContextManager[None]:
        """While entered, ComfyUI's model computes what transformers' does."""
        ...


class Qwen3VL:
    name = "Qwen3-VL"
    image_token = 151655

    def prompt(self, tokenizer: Any, text: str) -> str:
        image = "<|vision_start|><|image_pad|><|vision_end|>"
        return f"<|im_start|>user\n{image}{text}<|im_end|>\n<|im_start|>assistant\n"

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        side = model.visual.patch_size * model.visual.spatial_merge_size
        rows, columns = max(1, round(height / side)), max(1, round(width / side))
        pixels = rows * columns * side**2
        if pixels > max_pixels:
            scale = math.sqrt(max_pixels / (height * width)) / side
            rows, columns = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
        elif pixels < MIN_PIXELS:  # as its preprocessor_config.json says
            scale = math.sqrt(MIN_PIXELS / (height * width)) / side
            rows, columns = math.ceil(height * scale), math.ceil(width * scale)
        return rows * side, columns * side

    def blocks(self, model: Any) -> list[nn.Module]:
        visual, language = model.visual, model.model
        head = [language.lm_head] if language.config.lm_head else []
        return [*visual.blocks, visual.merger, *visual.deepstack_merger_list, *language.layers, *head]

    def vision_output(self, model: Any) -> nn.Module:
        return model.visual.merger.linear_fc2

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]]) -> dict[str, Any]:
        positions, mask, deepstack = model.build_image_inputs(embeds, info)
        return {"position_ids": positions, "visual_pos_masks": mask, "deepstack_embeds": deepstack}

    def corrected(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()


class Gemma4:
    name = "Gemma 4"
    image_token = 258880
    soft_tokens = 280  # the budget of one picture, whatever its size

    def prompt(self, tokenizer: Any, text: str) -> str:
        # The large models answer at once behind a closed thought, the small ones without it: so they were trained.
        thought = "<|channel>thought\n<channel|>" if getattr(tokenizer, "prime_empty_thought", False) else ""
        return f"<|turn>user\n<|image><|image|><image|>{text.strip()}<turn|>\n<|turn>model\n{thought}"

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        side = model.vision_model.patch_size * model.vision_model.pooling_kernel_size
        scale = math.sqrt(self.soft_tokens * side**2 / (height * width))
        rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
        if rows == 0:
            rows, columns = 1, min(width // height, self.soft_tokens)
        elif columns == 0:
            rows, columns = min(height // width, self.soft_tokens), 1
        return rows * side, columns * side

    def blocks(self, model: Any) -> list[nn.Module]:
        encoder = getattr(model.vision_model, "encoder", None)  # the 12B has none
        return [*(() if encoder is None else encoder.layers), *model.model.layers]

    def vision_output(self, model: Any) -> nn.Module:
        return model.multi_modal_projector.embedding_projection

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]]) -> dict[str, Any]:
        return {"embeds_info": info}

    @contextmanager
    def corrected(self, model: Any) -> Iterator[None]:
        # An image's tokens see one another in the large models' sliding layers only; ComfyUI lets them in all layers.
        bidirectional = model.model.config.vision_bidirectional
        layers = [layer for layer in model.model.layers if bidirectional and not layer.sliding_attention]
        handles = [layer.register_forward_pre_hook(_mask_what_follows, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _mask_what_follows(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs["attention_mask"]  # [L, L], added to the scores; none while a reply is written token by token
    if mask is None:
        return args, kwargs
    follows = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return args, {**kwargs, "attention_mask": mask.masked_fill(follows, torch.finfo(mask.dtype).min)}


FAMILIES: dict[str, Family] = {"Qwen3VL": Qwen3VL(), "Gemma4Base": Gemma4()}  # by the names of ComfyUI's classes
GEMMA3 = "a Gemma 3, of whose pictures ComfyUI shows it the middle only, and masks them unlike the original"
REFUSED = {
    "Qwen25_7BVLI": "a Qwen2.5-VL, which ComfyUI loads without its language head",
    "Gemma3_4B_Vision": GEMMA3,
    "Gemma3_12B": GEMMA3,
    "Qwen35": "a Qwen3.5, which has not been tried",
}
INSTEAD = (
    "Load a Qwen3-VL or Gemma 4 with CLIPLoader, of any type but flux and flux2, which leave its vision out; or use "
    "Load VLM Critic."
)


@dataclass(frozen=True)
class _Prompt:
    """Token ids before the image, behind it, and of the answer."""

    before: list[int]
    after: list[int]
    answer: list[int]


@dataclass(frozen=True)
class _Seen:
    """An image as the language model sees it."""

    embeds: Tensor  # [1, N, D]
    extra: Any  # the family's own: its grid and deeper features


class ClipCritic:
    """A frozen vision-language model that ComfyUI has loaded as a text encoder.

    Args:
        clip: ComfyUI's CLIP. ComfyUI's model management loads it when the critic is asked.
        max_pixels: a Qwen3-VL sees larger pictures shrunk to this area; Gemma 4 has a size of its own.

    Attributes:
        clip: the CLIP that was given.
        patcher: the ModelPatcher of the weights that judge: the CLIP's own, or of a resident copy.

    Raises:
        CriticError: the CLIP is no such model, or it is incomplete, or ComfyUI can only stream it.
    """

    def __init__(self, clip: Any, max_pixels: int = MAX_PIXELS) -> None:
        if not MIN_PIXELS <= max_pixels <= COMFY_MAX_PIXELS:
            raise CriticError(f"Expected max_pixels from {MIN_PIXELS} to {COMFY_MAX_PIXELS}, got {max_pixels}.")
        self.clip = clip
        self._family = _find_family(clip)
        self.patcher = _resident(clip)
        self._key = clip.cond_stage_model.clip
        self._max_pixels = max_pixels
        self._decode = clip.tokenizer.decode
        tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
        # Bound to the tokenizer and not to self, so that dropping the critic frees the model at once.
        self._prompt = lru_cache(maxsize=CACHED_PROMPTS)(partial(_make_prompt, self._family, tokenizer))
        _check_complete(self._family, self._model)

    @property
    def _model(self) -> Any:
        return getattr(self.patcher.model, self._key).transformer

    @cached_property
    def info(self) -> ModelInfo:
        """Name of the file, family, dtype and a hash of the weights without LoRAs, computed when first asked for."""
        model, backup = self._model, self.patcher.backup
        weights = []
        for name, parameter in model.named_parameters():
            kept = backup.get(f"{self._key}.transformer.{name}")  # what ComfyUI puts back when it takes LoRAs out
            weights.append((name, _stored(parameter if kept is None else kept.weight)))
        return ModelInfo(
            name=_file_name(self.patcher) or self._key,
            architecture=self._family.name,
            dtype=str(_stored(model.model.layers[0].mlp.down_proj.weight).dtype).removeprefix("torch."),
            weights_sha256=weights_sha256(weights),
        )

    @contextmanager
    def resident(self) -> Iterator[None]:
        """While entered, the weights are where the critic computes; a backward pass may also be made later.

        Raises:
            CriticError: the model does not fit into memory.
            StopRequested: the user has cancelled ComfyUI's run.
        """
        self._load()
        try:
            yield
        except comfy.model_management.InterruptProcessingException as error:  # raised by any layer of a model
            raise StopRequested from error

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question): the sum over the answer's tokens, without an end of sequence.

        Args:
            images: [B, 3, H, W], floats in [0, 1].
            questions: Q objects with `text` and `answer`.

        Returns:
            [B, Q], float32, on the images' device, differentiable in `images`.

        Raises:
            CriticError: images of another shape, dtype or range, no question, an empty one, an answer that the
                tokenizer makes nothing of, or a model that does not fit into memory.
        """
        check_images(images)
        if len(questions) == 0:
            raise CriticError("Expected at least one question, got none.")
        prompts = [self._prompt(*check_question(question)) for question in questions]
        self._load()
        model = self._model
        with self._family.corrected(model), differentiable(model, self._family.blocks(model)):
            rows = []
            for image in images:
                seen = self._look(image)
                rows.append(torch.stack([self._log_probability(seen, prompt) for prompt in prompts]))
        return torch.stack(rows).to(images.device)

    def answer(self, images: Tensor, text: str, max_new_tokens: int = 16) -> list[str]:
        """The most likely reply, token by token, to one question about each of images [B, 3, H, W] in [0, 1].

        Raises:
            CriticError: images of another shape, dtype or range, an empty question, or less than one token asked for.
        """
        check_images(images)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise CriticError(f"Expected max_new_tokens of at least 1, got {max_new_tokens!r}.")
        prompt = self._prompt(check_text(text), None)
        self._load()
        with torch.inference_mode(), self._family.corrected(self._model):
            return [self._reply(self._look(image), prompt, max_new_tokens) for image in images]

    def _load(self) -> None:
        """Makes every weight resident where it computes; does nothing where they are, so as to push nothing out."""
        device = self.patcher.load_device
        if self.patcher not in comfy.model_management.loaded_models() or not self._is_on(device):
            with torch.inference_mode():  # the weights are inference tensors; moving them elsewhere would fail
                comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        if not self._is_on(device):
            raise CriticError(
                f"The critic {self._family.name} does not fit into the memory of {device} beside what else is needed. "
                "Use a smaller or quantised file of it, or start ComfyUI without --novram."
            )

    def _is_on(self, device: torch.device) -> bool:
        return all(parameter.device.type == device.type for parameter in self._model.parameters())

    def _look(self, image: Tensor) -> _Seen:
        """Runs the vision tower on an image [3, H, W]."""
        device = self.patcher.load_device
        height, width = image.shape[-2:]
        size = self._family.size(self._model, height, width, self._max_pixels)
        picture = image[None].to(device, torch.float32)
        if (height, width) != size:
            picture = F.interpolate(picture, size, mode="bicubic", antialias=True)
        image_side = {"type": "image", "data": picture.movedim(1, -1), "max_soft_tokens": Gemma4.soft_tokens}
        embeds, extra = self._model.preprocess_embed(image_side, device=device)
        return _Seen(embeds.reshape(1, -1, embeds.shape[-1]).float(), extra)

    def _log_probability(self, seen: _Seen, prompt: _Prompt) -> Tensor:
        model, answer = self._model, prompt.answer
        embeds, ids, context = self._embed(seen, prompt)
        hidden = model.model(None, embeds=embeds, input_ids=ids, **context)[0]
        logits = model.logits(hidden[0, -len(answer) :, None])[:, 0]  # [A, 1, D] -> [A, vocabulary]
        targets = torch.tensor(answer, device=logits.device)
        return -F.cross_entropy(logits.float(), targets, reduction="sum")

    def _reply(self, seen: _Seen, prompt: _Prompt, max_new_tokens: int) -> str:
        embeds, ids, context = self._embed(seen, prompt)
        reply = self._model.generate(
            embeds, do_sample=False, max_length=max_new_tokens, initial_input_ids=ids, **context
        )
        return self._decode(reply).strip()

    def _embed(self, seen: _Seen, prompt: _Prompt) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Embeddings [1, L, D] up to the answer's last token, ids [1, L] with 0 for the image, and the context."""
        model, device = self._model, self.patcher.load_device
        behind = prompt.after + prompt.answer[:-1]
        start, length = len(prompt.before), seen.embeds.shape[1]
        tokens = torch.tensor([prompt.before + behind], device=device)
        text = model.get_input_embeddings()(tokens, out_dtype=torch.float32)
        # As when ComfyUI lets such models write; float32 would make a copy of every half-precision weight.
        dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
        embeds = torch.cat([text[:, :start], seen.embeds, text[:, start:]], dim=1).to(dtype)
        ids = torch.tensor([prompt.before + [0] * length + behind], device=device)
        info = [{"type": "image", "index": start, "size": length, "extra": seen.extra}]
        return embeds, ids, self._family.context(model, embeds, info)


def _find_family(clip: Any) -> Family:
    encoder = getattr(clip, "cond_stage_model", None)
    model = getattr(getattr(encoder, getattr(encoder, "clip", ""), None), "transformer", None)
    names = [kind.__name__ for kind in type(model).__mro__]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    reason = next((REFUSED[name] for name in names if name in REFUSED), None)
    if reason is None:
        found = type(encoder if model is None else model).__name__.strip("_")
        reason = f"{found}, which has no vision"
    raise CriticError(f"Expected a CLIP that can see and answer, got {reason}. {INSTEAD}")


def _resident(clip: Any) -> Any:
    """The CLIP's ModelPatcher, or one over a resident copy where ComfyUI streams the weights."""
    patcher = clip.patcher
    if not patcher.is_dynamic():
        return patcher
    if patcher.cached_patcher_init is None:
        raise CriticError(
            "ComfyUI streams this CLIP's weights (dynamic VRAM), and its loader cannot load a resident copy. Use one "
            "of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram."
        )
    log.warning(
        "ComfyUI streams this CLIP's weights on demand (dynamic VRAM), which gradients cannot follow. A second copy of "
        "it is made in RAM for the critic; start ComfyUI with --disable-dynamic-vram to avoid that."
    )
    return patcher.clone(disable_dynamic=True)


def _check_complete(family: Family, model: Any) -> None:
    """Raises CriticError where the file has left out weights that ComfyUI does without when it encodes prompts."""
    config = model.model.config
    if model.model.norm is None:
        raise CriticError(f"This {family.name} is cut off above the layers that encode prompts. {INSTEAD}")
    head = model.model.lm_head if config.lm_head else model.model.embed_tokens
    for part, layer in {"language head": head, "vision": family.vision_output(model)}.items():
        weight = _stored(layer.weight)
        rows = weight.detach()[:: max(1, len(weight) // 64)].float()
        if not torch.isfinite(rows).all() or rows.amin() == rows.amax():
            raise CriticError(
                f"The file of this {family.name} lacks the weights of its {part}, without which its answers mean "
                "nothing; ComfyUI loads it nevertheless, to encode prompts. Use a file of the whole model."
            )


def _stored(weight: Any) -> Tensor:
    """The numbers as they lie in the file; of a quantised weight without its scale."""
    return getattr(weight, "_qdata", weight)


def _make_prompt(family: Family, tokenizer: Any, text: str, answer: str | None) -> _Prompt:
    """Tokenises a question; the answer's tokens are those that it adds."""
    prompt = family.prompt(tokenizer, text)
    ids = _tokenize(tokenizer, prompt)
    if ids.count(family.image_token) != 1:
        raise CriticError(f"The question {text!r} holds a mark that stands for an image; leave it out.")
    at, target = ids.index(family.image_token), []
    if answer is not None:
        answered = _tokenize(tokenizer, prompt + answer)
        shared = next((i for i, (a, b) in enumerate(zip(ids, answered, strict=False)) if a != b), len(ids))
        ids, target = answered[:shared], answered[shared:]
        if not target or shared <= at:
            raise CriticError(f"The answer {answer!r} is nothing to the critic's tokenizer; give at least one word.")
    return _Prompt(ids[:at], ids[at + 1 :], target)


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    # Not by ComfyUI's own method, to which "embedding:" and brackets in a question mean something.
    start = [] if tokenizer.start_token is None else [tokenizer.start_token]
    return [*start, *tokenizer.tokenizer(text)["input_ids"]]


def _file_name(patcher: Any) -> str | None:
    """The name of the file that a core loader has read."""
    path = (patcher.cached_patcher_init or (None, (None,)))[1][0]
    first = path[0] if isinstance(path, list | tuple) and path else path
    return Path(first).stem if isinstance(first, str) else None
