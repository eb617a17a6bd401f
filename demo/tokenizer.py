"""Word-level tokenizers of the demo models: whole words, unknown ones as `<unk>`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PROMPT_LENGTH = 12
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
PROMPT_WORDS = tuple(
    "a the sky over under with sea sand grass day sunset night house tree ball".split()  # noqa: SIM905
)


def _word_level(words: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return tokenizer


def prompt_tokenizer(words: Sequence[str] = PROMPT_WORDS, length: int = PROMPT_LENGTH) -> PreTrainedTokenizerFast:
    """The tokenizer of both text encoders: lower case, `</s>` at the end, padded to `length` tokens."""
    tokenizer = _word_level([PAD, EOS, UNKNOWN, *words])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=length,
        padding_side="right",
    )


CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def _words(texts: Iterable[str]) -> set[str]:
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return {w for text in texts for t in (text, text.lower()) for w, _ in split.pre_tokenize_str(t)}


def critic_tokenizer(texts: Iterable[str], later: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """The critic's tokenizer: it knows the words of `texts`, as they are written and in lower case.

    Args:
        later: texts whose words were learnt later: their numbers come behind all others.
    """
    words = {"user", "assistant", "system", "Yes", "No"} | _words(texts)
    tokenizer = _word_level([PAD, EOS, UNKNOWN, *CHAT_TOKENS, *sorted(words), *sorted(_words(later) - words)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token="<|im_end|>",
        unk_token=UNKNOWN,
        additional_special_tokens=list(CHAT_TOKENS),
        model_max_length=256,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
