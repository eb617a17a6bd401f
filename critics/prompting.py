"""The text side of a question: chat template, tokens with the image's placeholders, and where the answer lies.

It depends on the texts and the image's size alone, so that a training run needs it once per question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PaliGemmaProcessor

from ..core.errors import CriticError
from ..core.picture import Picture
from ..core.protocols import AskedQuestion
from .preprocessing import single_tile


@dataclass(frozen=True)
class Encoded:
    """One prompt for images of one size, with all of its answer but the last token: nothing follows that is rated."""

    text_side: dict[str, Tensor]  # what the processor makes of the text: [1, L] or [1, L, …]
    answer: Tensor  # [A], token ids
    image_shapes: dict[str, tuple[int, ...]]  # the image side that the model takes, for one image


@dataclass(frozen=True)
class Prompts:
    """Q prompts for images of one size, padded on the left so that all end together."""

    inputs: dict[str, Tensor]  # the processor's text side: [Q, L] or [Q, L, …]
    targets: Tensor  # [Q, A], token ids of the answers, at the right
    is_answer: Tensor  # [Q, A], False on the padding of shorter answers
    image_shapes: dict[str, tuple[int, ...]]  # the image side that the model takes, for one image


Size = tuple[int, int]  # height and width of a picture, pixels
MOST_REFERENCES = 25  # picture A to Y


def check_question(question: AskedQuestion) -> tuple[str, str]:
    """The question's text and answer; raises CriticError if one of them is empty."""
    text, answer = check_text(question.text), question.answer
    if not isinstance(answer, str) or not answer.strip():
        raise CriticError(f"Expected an answer of at least one word to {text!r}, got {answer!r}.")
    return text, answer


def references_of(questions: Sequence[AskedQuestion]) -> tuple[Picture, ...]:
    """The pictures that all the questions show beside the judged one.

    Raises:
        CriticError: they show different ones, or more than there are letters for.
    """
    shown = {question.references for question in questions}
    if len(shown) > 1:
        raise CriticError("Expected questions with the same references in one call, got several: ask them apart.")
    (references,) = shown
    if len(references) > MOST_REFERENCES:
        raise CriticError(f"Expected at most {MOST_REFERENCES} references, got {len(references)}: leave some out.")
    return references


def with_references(text: str, count: int) -> str:
    """The question behind a sentence that says which of the pictures is which; without references as it is."""
    if count == 0:
        return text
    letters = [chr(ord("A") + number) for number in range(count)]
    named = f"picture {letters[0]}" if count == 1 else f"pictures {', '.join(letters[:-1])} and {letters[-1]}"
    return f"The first picture is the one to judge; behind it {'is' if count == 1 else 'are'} {named}. {text}"


def check_text(text: str) -> str:
    """The question's text; raises CriticError if it is empty."""
    if not isinstance(text, str) or not text.strip():
        raise CriticError(f"Expected a question of at least one word, got {text!r}.")
    return text


def check_reply_length(max_new_tokens: int) -> None:
    """Raises CriticError unless it is a whole number of at least 1."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise CriticError(f"Expected max_new_tokens of at least 1, got {max_new_tokens!r}.")


def encode(processor: Any, text: str, answer: str | None, sizes: tuple[Size, ...]) -> Encoded:
    """Tokenises a question, and its answer if there is one, about an image and its references of such sizes.

    Raises:
        CriticError: a text that the processor cannot take, or an answer without a token of its own.
    """
    text = with_references(text, len(sizes) - 1)
    prompt = render_prompt(processor, text, len(sizes))
    text_side, image_side = _tokenize(processor, prompt, sizes)
    if answer is None:
        return Encoded(text_side, torch.zeros(0, dtype=torch.long), image_side)
    prompt_ids = text_side["input_ids"][0]
    if takes_suffix(processor):
        text_side, image_side = _tokenize(processor, prompt, sizes, suffix=[answer])
        text_side = _without_last(text_side)  # the processor's <eos>
    else:
        answered = render_answered(processor, prompt, text, answer, len(sizes))
        text_side, image_side = _tokenize(processor, answered, sizes)
    answer_ids = _what_differs(prompt_ids, text_side["input_ids"][0])
    _check_answer(processor.tokenizer, answer, answer_ids)
    return Encoded(_without_last(text_side), answer_ids, image_side)


def pad(rows: Sequence[Encoded], tokenizer: Any, device: torch.device | str = "cpu") -> Prompts:
    """Brings prompts to one length."""
    length = max(row.text_side["input_ids"].shape[1] for row in rows)
    longest = max(len(row.answer) for row in rows)
    inputs = {}
    for name in rows[0].text_side:
        fill = _pad_id(tokenizer) if name == "input_ids" else 0
        inputs[name] = torch.cat([_pad_left(row.text_side[name], _length(row), length, fill) for row in rows])
    targets = torch.stack([F.pad(row.answer, (longest - len(row.answer), 0)) for row in rows])
    is_answer = torch.stack([torch.arange(longest) >= longest - len(row.answer) for row in rows])
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return Prompts(inputs, targets.to(device), is_answer.to(device), rows[0].image_shapes)


def takes_suffix(processor: Any) -> bool:
    """Whether it takes a question as a prefix and its answer as a suffix, without a chat template (PaliGemma)."""
    return isinstance(processor, PaliGemmaProcessor) and getattr(processor, "chat_template", None) is None


def render_prompt(processor: Any, text: str, pictures: int) -> str:
    """The model's own chat template around pictures and a question, up to where the model's turn begins."""
    if takes_suffix(processor):
        if pictures > 1:
            raise CriticError(
                "Expected a question without references: a PaliGemma has learnt to look at one picture only. Choose "
                "another critic, such as a Qwen2.5-VL or an Idefics3."
            )
        return f"{processor.image_token}answer en {text}"  # the task that PaliGemma's "mix" models know
    try:
        return processor.apply_chat_template(
            [_user(text, pictures)], add_generation_prompt=True, **_thoughtless(processor)
        )
    except (ValueError, TypeError, TemplateError) as error:
        raise CriticError(f"The critic's chat template refused the question {text!r}: {error}.") from error


def render_answered(processor: Any, prompt: str, text: str, answer: str, pictures: int) -> str:
    """The same with the answer behind it, spaced as the template does ("ASSISTANT: Yes" after "ASSISTANT:")."""
    reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    try:
        answered = processor.apply_chat_template([_user(text, pictures), reply], continue_final_message=True)
    except (ValueError, TypeError, TemplateError):
        return prompt + answer  # a template for users' turns only
    # Templates that put more than the answer behind the prompt (thinking blocks) would be rated on that too.
    follows = answered.startswith(prompt) and answered[len(prompt) :].strip() == answer.strip()
    return answered if follows else prompt + answer


def _thoughtless(processor: Any) -> dict[str, bool]:
    """The option by which a template (Qwen3.5's) leaves no thought open, in which "Yes" would be no answer yet."""
    return {"enable_thinking": False} if "enable_thinking" in str(processor.chat_template) else {}


def _user(text: str, pictures: int) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]}


def _tokenize(
    processor: Any, prompt: str, sizes: Sequence[Size], **suffix: Any
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """The whole processor's output: its text side, and the shapes of its image side."""
    pictures = [Image.new("RGB", (width, height)) for height, width in sizes]  # only the sizes matter here
    options = single_tile(processor.image_processor)
    # A template that writes the beginning-of-sequence token itself must not get a second one.
    bos = processor.tokenizer.bos_token
    special = {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}
    try:
        whole = processor(
            text=[prompt], images=[pictures], images_kwargs=options, return_tensors="pt", **special, **suffix
        )
        image_names = processor.image_processor(images=[pictures], return_tensors="pt", **options).keys()
    except (ValueError, TypeError, IndexError) as error:
        shown = ", ".join(f"{width}×{height}" for height, width in sizes)
        raise CriticError(f"The critic's processor refused pictures of {shown} pixels: {error} ({prompt!r})") from error
    text_side = {name: value for name, value in whole.items() if name not in image_names and name != "labels"}
    return text_side, {name: tuple(whole[name].shape) for name in image_names if name in whole}


def _what_differs(prompt: Tensor, answered: Tensor) -> Tensor:
    """The tokens of `answered` from the first one that is not `prompt`'s."""
    shared = min(len(prompt), len(answered))
    differs = (prompt[:shared] != answered[:shared]).nonzero()
    return answered[int(differs[0]) if len(differs) else shared :]


def _check_answer(tokenizer: Any, answer: str, ids: Tensor) -> None:
    if len(ids) == 0:
        raise CriticError(f"The answer {answer!r} is nothing to the critic's tokenizer; give at least one word.")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids.tolist():
        raise CriticError(f"The critic's tokenizer does not know every word of the answer {answer!r}; use other words.")


def _length(row: Encoded) -> int:
    return row.text_side["input_ids"].shape[1]


def is_sequence(value: Tensor, length: int) -> bool:
    """Whether it holds something for each of a prompt's `length` tokens: [1, L] or [1, L, …]."""
    return value.ndim >= 2 and value.shape[1] == length


def _without_last(text_side: dict[str, Tensor]) -> dict[str, Tensor]:
    length = text_side["input_ids"].shape[1]
    return {name: value[:, :-1] if is_sequence(value, length) else value for name, value in text_side.items()}


def _pad_left(value: Tensor, length: int, target: int, fill: int) -> Tensor:
    """Pads [1, length, …] on the left of dimension 1 to `target`; leaves what has no such dimension."""
    if not is_sequence(value, length):
        return value
    return F.pad(value, (0, 0) * (value.ndim - 2) + (target - length, 0), value=fill)


def _pad_id(tokenizer: Any) -> int:
    # Masked out wherever it stands; it must only not be the image's placeholder.
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
