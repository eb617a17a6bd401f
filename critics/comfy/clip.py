# pyright: reportMissingImports=false
"""A critic out of a CLIP that ComfyUI has loaded: the text encoder of many image models is a vision-language model.

The very weights that encode prompts judge the pictures, so no second copy is loaded. Nothing of the CLIP is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional as F

from ...comfy_host.borrowed import Borrowed, why_not
from ...comfy_host.weights import overridden_forward
from ...core.errors import CriticError, StopRequested
from ...core.fingerprint import weights_sha256
from ...core.picture import Picture
from ...core.protocols import AskedQuestion, ModelInfo
from ...core.residency import visiting_tensors, weights_of
from ...core.sizes import ModelSize, size_up
from ...core.streaming import Offload, Stream, check_offload
from ..preprocessing import check_images
from ..prompting import Encoded, check_question, check_reply_length, check_text, references_of, with_references
from ..shared_prefix import SharedPrompts, share
from ..sizes import OF_PICTURES
from .delta_net import branched
from .differentiable import differentiable
from .families import MIN_PIXELS, Family, Gemma4, Qwen3VL, Qwen35
from .managed import TOKENS

MAX_PIXELS = 1024 * 1024
COMFY_MAX_PIXELS = 12_845_056  # ComfyUI shrinks a Qwen's larger pictures by itself
CACHED_PROMPTS = 64
PATCH, WORDS = 16, 64  # pixels of a patch and side, and tokens of a question with its chat template, to estimate sizes

log = logging.getLogger(__name__)

# By the names of ComfyUI's classes.
FAMILIES: dict[str, Family] = {"Qwen3VL": Qwen3VL(), "Qwen35": Qwen35(), "Gemma4Base": Gemma4()}
GEMMA3 = "a Gemma 3, of whose pictures ComfyUI shows it the middle only, and masks them unlike the original"
REFUSED = {
    "Qwen25_7BVLI": "a Qwen2.5-VL, which ComfyUI loads without its language head",
    "Gemma3_4B_Vision": GEMMA3,
    "Gemma3_12B": GEMMA3,
}
INSTEAD = (
    "Load a Qwen3-VL, Qwen3.5 or Gemma 4 with CLIPLoader, of any type but flux and flux2, which leave its vision out; "
    "or use Load VLM Critic."
)


@dataclass(frozen=True)
class _Prompt:
    """Token ids around the pictures, and of the answer."""

    parts: list[list[int]]  # before the first picture, between two, behind the last
    answer: list[int]


@dataclass(frozen=True)
class _Seen:
    """An image as the language model sees it."""

    embeds: Tensor  # [1, N, D]
    extra: Any  # the family's own: its grid and deeper features


class ClipCritic:
    """A frozen vision-language model that ComfyUI has loaded as a text encoder.

    Args:
        clip: ComfyUI's CLIP.
        max_pixels: a Qwen sees larger pictures shrunk to this area; Gemma 4 has a size of its own.
        offload: False leaves it to ComfyUI's model management to load the CLIP when the critic is asked, unless ComfyUI
            would stream its weights (dynamic VRAM). True keeps the weights in main memory and brings them to the device
            while the critic works, "blocks" each block's only while that block works. Weights of a kind that cannot be
            moved so stay ComfyUI's, and a warning says why.

    Attributes:
        clip: the CLIP that was given.
        patcher: a ModelPatcher of the weights that judge, which ComfyUI loads unless the critic offloads.
        offload: what is in force; `arranged` sets it for a while.

    Raises:
        CriticError: the CLIP is no such model, or it is incomplete, or ComfyUI can only stream it.
    """

    def __init__(self, clip: Any, max_pixels: int = MAX_PIXELS, offload: Offload = False) -> None:
        check_offload(offload, CriticError)
        if not MIN_PIXELS <= max_pixels <= COMFY_MAX_PIXELS:
            raise CriticError(f"Expected max_pixels from {MIN_PIXELS} to {COMFY_MAX_PIXELS}, got {max_pixels}.")
        self.clip = clip
        self._family = _find_family(clip)
        self._reason = why_not(clip.patcher)
        self._borrowed = None if self._reason else Borrowed(clip.patcher)
        self._is_streamed = self._borrowed is not None and clip.patcher.is_dynamic()  # by ComfyUI, unless we move it
        self.patcher = _resident(clip, self._reason) if self._borrowed is None else self._borrowed.patcher
        self.offload: Offload = self._possible(offload)
        self._visit: tuple[Offload, Callable[[], AbstractContextManager[None]]] | None = None
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
        """While entered, the weights, or with "blocks" those of the block that works, are where the critic computes.

        A backward pass is made inside, too, if the critic offloads.

        Raises:
            CriticError: the model does not fit into memory.
            StopRequested: the user has cancelled ComfyUI's run.
        """
        with self._here():
            try:
                yield
            except comfy.model_management.InterruptProcessingException as error:  # raised by any layer of a model
                raise StopRequested from error

    @contextmanager
    def arranged(self, offload: Offload | None = None, gradient_checkpointing: bool | None = None) -> Iterator[None]:
        """While entered, the critic offloads so; None leaves it as it is.

        With `offload` False, weights that ComfyUI would stream stay on the device for as long as this is entered.
        Gradient checkpointing is always on: autograd would keep the copies of weights that ComfyUI's layers make.

        Raises:
            CriticError: `offload` is none of its values.
        """
        before, stays = self.offload, False
        if offload is not None:
            check_offload(offload, CriticError)
            self.offload, stays = self._possible(offload), offload is False and self._is_streamed
        try:
            with self.resident() if stays else nullcontext():
                yield
        finally:
            self.offload, self._visit = before, None

    def _possible(self, offload: Offload) -> Offload:
        """What can be had of it."""
        if self._borrowed is not None:
            return offload or self._is_streamed
        if offload:
            log.warning("The critic %s is loaded by ComfyUI: its weights %s.", self._family.name, self._reason)
        return False

    @contextmanager
    def _here(self) -> Iterator[None]:
        if not self.offload or self._borrowed is None:
            self._load()
            yield
            return
        with ExitStack() as stack:
            with torch.inference_mode(False):  # what is moved in it can take part in no gradient
                new = stack.enter_context(self._borrowed.in_force())
                kept = None if new else self._visit
                visit = self._make_visit() if kept is None or kept[0] != self.offload else kept[1]
                self._visit = self.offload, visit
                stack.enter_context(visit())
            yield

    def _make_visit(self) -> Callable[[], AbstractContextManager[None]]:
        device = self.patcher.load_device
        if self.offload == "blocks":
            return Stream(self._model, device, self._family.blocks(self._model)).running
        return partial(visiting_tensors, weights_of(self._model), device)

    def log_likelihood(self, images: Tensor, questions: Sequence[AskedQuestion]) -> Tensor:
        """log P(answer | image, question): the sum over the answer's tokens, without an end of sequence.

        Args:
            images: [B, 3, H, W], floats in [0, 1].
            questions: Q objects with `text`, `answer` and `references`; these are the same for all.

        Returns:
            [B, Q], float32, on the images' device, differentiable in `images`.

        Raises:
            CriticError: images of another shape, dtype or range, no question, an empty one, an answer that the
                tokenizer makes nothing of, references that differ, or a model that does not fit into memory.
        """
        check_images(images)
        if len(questions) == 0:
            raise CriticError("Expected at least one question, got none.")
        references = references_of(questions)
        prompts = [self._prompt(*check_question(question), len(references)) for question in questions]
        with self._here():
            model, blocks = self._model, self._family.blocks(self._model)
            gradients = partial(differentiable, model, blocks, plain=bool(self.offload))
            beside = self._look_beside(references)
            with gradients():
                seen = [[self._look(image), *beside] for image in images]
            asked = self._ask(prompts, seen[0])
            with self._family.corrected(model), _each_as_alone(model.model.layers, asked), gradients():
                rows = [self._log_probabilities(pictures, asked, len(prompts)) for pictures in seen]
            return torch.stack(rows).to(images.device)

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
        prompt = self._prompt(check_text(text), None, len(references))
        # Not in inference mode while it offloads: what is moved in it can take part in no gradient.
        with (
            self._here(),
            torch.inference_mode(not self.offload),
            torch.no_grad(),
            self._family.corrected(self._model),
        ):
            beside = self._look_beside(references)
            return [self._reply([self._look(image), *beside], prompt, max_new_tokens) for image in images]

    def _load(self) -> None:
        """Makes every weight resident where it computes; does nothing where they are, so as to push nothing out."""
        device = self.patcher.load_device
        if self.patcher not in comfy.model_management.loaded_models() or not self._is_on(device):
            with torch.inference_mode():  # the weights are inference tensors; moving them elsewhere would fail
                comfy.model_management.load_models_gpu([self.patcher], self._working_memory(), force_full_load=True)
        if not self._is_on(device):
            raise CriticError(
                f"The critic {self._family.name} does not fit into the memory of {device} beside what else is needed. "
                "Use a smaller or quantised file of it, or start ComfyUI without --novram."
            )

    def size(
        self, height: int, width: int, questions: Sequence[AskedQuestion], samples: int = 1, bits: str | None = None
    ) -> ModelSize:
        """What judging takes on the device, about, for pictures of height × width pixels; layers always recompute."""
        pictures = samples * (1 + len(references_of(questions)))
        patches = pictures * min(height * width, self._max_pixels) // PATCH**2
        tokens = patches // 4 + samples * WORDS * len(questions)

        def positions(name: str, module: Any) -> int:
            return patches if OF_PICTURES.search(name) else 0 if name.endswith("lm_head") else tokens

        found = size_up(self._model, positions, torch.float32)
        return replace(found, kept=found.inputs + found.block)

    def _working_memory(self) -> int:
        """Bytes that a gradient takes: the input of every layer, and all of the one that is computed again."""
        config = self._model.model.config
        # In hidden sizes a token. A gated delta net, which inverts a matrix for each chunk and head, was measured.
        widest = 112 if any(hasattr(layer, "linear_attn") for layer in self._model.model.layers) else 17
        return 4 * TOKENS * config.hidden_size * (config.num_hidden_layers + widest)  # float32; see ManagedCritic

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
        embeds, extra = self._family.look(self._model, picture.movedim(1, -1), device)
        return _Seen(embeds.reshape(1, -1, embeds.shape[-1]).float(), extra)

    @torch.no_grad()
    def _look_beside(self, references: Sequence[Picture]) -> list[_Seen]:
        return [self._look(picture.tensor()) for picture in references]

    def _ask(self, prompts: Sequence[_Prompt], seen: Sequence[_Seen]) -> SharedPrompts:
        """The prompts in one sequence around the places of such pictures."""
        rows = []
        for prompt in prompts:
            ids = [*prompt.parts[0]]
            for picture, part in zip(seen, prompt.parts[1:], strict=True):
                ids += [self._family.image_token] * picture.embeds.shape[1] + part
            ids += prompt.answer[:-1]
            rows.append(Encoded({"input_ids": torch.tensor([ids])}, torch.tensor(prompt.answer, dtype=torch.long), {}))
        asked = share(rows, self._family.image_token, self.patcher.load_device)
        assert asked is not None  # no template has anything of the question before the image
        return asked

    def _log_probabilities(self, seen: Sequence[_Seen], asked: SharedPrompts, questions: int) -> Tensor:
        model = self._model
        embeds, ids, context = self._embed(seen, asked)
        hidden = model.model(None, embeds=embeds, input_ids=ids, **context)[0]
        logits = model.logits(hidden[0, asked.predicting, None])[:, 0]  # [T, 1, D] -> [T, vocabulary]
        scores = -F.cross_entropy(logits.float(), asked.targets, reduction="none")
        return scores.new_zeros(questions).index_add(0, asked.question, scores)

    def _reply(self, seen: Sequence[_Seen], prompt: _Prompt, max_new_tokens: int) -> str:
        embeds, ids, context = self._embed(seen, self._ask([prompt], seen))
        reply = self._model.generate(
            embeds, do_sample=False, max_length=max_new_tokens, initial_input_ids=ids, **context
        )
        return self._decode(reply).strip()

    def _embed(self, seen: Sequence[_Seen], asked: SharedPrompts) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Embeddings [1, L, D], ids [1, L] with 0 for the pictures, and the context."""
        model, device = self._model, self.patcher.load_device
        ids = asked.inputs["input_ids"]
        is_image = ids == self._family.image_token
        starts = is_image[0].nonzero()[:, 0].tolist()  # of the pictures' tokens, one behind the other
        ids = ids.masked_fill(is_image, 0)
        text = model.get_input_embeddings()(ids, out_dtype=torch.float32)
        # As when ComfyUI lets such models write; float32 would make a copy of every half-precision weight.
        dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
        pieces, info, end, passed = [], [], 0, 0
        for picture in seen:
            start, length = starts[passed], picture.embeds.shape[1]
            pieces += [text[:, end:start], picture.embeds]
            info.append({"type": "image", "index": start, "size": length, "extra": picture.extra})
            end, passed = start + length, passed + length
        embeds = torch.cat([*pieces, text[:, end:]], dim=1).to(dtype)
        return embeds, ids, self._family.context(model, embeds, info, asked.place)


@contextmanager
def _each_as_alone(layers: Iterable[Any], asked: SharedPrompts) -> Iterator[None]:
    """While entered, every prompt's rest is hidden from the others', and sees what it would see if it were alone."""
    place, part = asked.place, asked.part
    unrelated = (part != 0) & (part != part[:, None])  # [L, L], keys last
    lengths = [length for length in part.bincount().tolist() if length]  # of the beginning and the rests

    def mask(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs["attention_mask"]  # [L, L], added to the scores; what it hides depends on places alone
        alone = given[..., place, :][..., place].masked_fill(unrelated, torch.finfo(given.dtype).min)
        return args, {**kwargs, "attention_mask": alone}

    with ExitStack() as stack:
        for layer in layers if len(lengths) > 1 else ():
            if hasattr(layer, "linear_attn"):
                forward = partial(_branching, layer.linear_attn, lengths, layer.forward)
            else:
                forward = partial(_hooked, layer.self_attn, mask, layer.forward)
            stack.enter_context(overridden_forward(layer, forward))
        yield


def _hooked(attention: Any, hook: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's forward with a hook on its attention, which gets the masks that the layer has added its own to.

    The hook goes with the forward so as to be there when the layer is computed again in the backward pass.
    """
    with attention.register_forward_pre_hook(hook, with_kwargs=True):
        return forward(*args, **kwargs)


def _branching(net: Any, lengths: Sequence[int], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's forward in which its gated delta net goes on from the beginning with each rest."""
    with overridden_forward(net, partial(branched, net, lengths)):
        return forward(*args, **kwargs)


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


def _resident(clip: Any, reason: str) -> Any:
    """The CLIP's ModelPatcher, or one over a second copy where ComfyUI streams the weights; the reason is said."""
    patcher = clip.patcher
    if not patcher.is_dynamic():
        return patcher
    streamed = (
        f"ComfyUI streams this CLIP's weights on demand (dynamic VRAM), which gradients cannot follow, and {reason}"
    )
    if patcher.cached_patcher_init is None:
        raise CriticError(f"{streamed}. Its loader cannot make a second copy: use one of ComfyUI's own loaders.")
    log.warning("%s. So a second copy of it is made in main memory for the critic.", streamed)
    return patcher.clone(disable_dynamic=True)


def _check_complete(family: Family, model: Any) -> None:
    """Raises CriticError where the file, or this version of ComfyUI, has left out weights that judging needs."""
    config = model.model.config
    if model.model.norm is None:
        raise CriticError(f"This {family.name} is cut off above the layers that encode prompts. {INSTEAD}")
    if any(getattr(layer, "layer_scalar", 1) is None for layer in model.model.layers):
        raise CriticError(
            f"ComfyUI before version 0.29 runs this size of {family.name} without a part of it, so that its answers "
            f"mean nothing. Update ComfyUI, or use the E2B or E4B. {INSTEAD}"
        )
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


def _make_prompt(family: Family, tokenizer: Any, text: str, answer: str | None, references: int) -> _Prompt:
    """Tokenises a question; the answer's tokens are those that it adds."""
    pictures = 1 + references
    prompt = family.prompt(tokenizer, with_references(text, references), pictures)
    ids = _tokenize(tokenizer, prompt)
    if ids.count(family.image_token) != pictures:
        raise CriticError(f"The question {text!r} holds a mark that stands for an image; leave it out.")
    target = []
    if answer is not None:
        answered = _tokenize(tokenizer, prompt + answer)
        shared = next((i for i, (a, b) in enumerate(zip(ids, answered, strict=False)) if a != b), len(ids))
        ids, target = answered[:shared], answered[shared:]
        if not target or ids.count(family.image_token) != pictures:
            raise CriticError(f"The answer {answer!r} is nothing to the critic's tokenizer; give at least one word.")
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == family.image_token:
            parts.append([])
        else:
            parts[-1].append(token)
    return _Prompt(parts, target)


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    # Not by ComfyUI's own method, to which "embedding:" and brackets in a question mean something.
    start = [] if tokenizer.start_token is None else [tokenizer.start_token]
    return [*start, *tokenizer.tokenizer(text)["input_ids"]]


def _file_name(patcher: Any) -> str | None:
    """The name of the file that a core loader has read."""
    path = (patcher.cached_patcher_init or (None, (None,)))[1][0]
    first = path[0] if isinstance(path, list | tuple) and path else path
    return Path(first).stem if isinstance(first, str) else None
