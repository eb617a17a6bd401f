"""What the families share: a tokenizer of a few words, the text model's size, and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, TokenizersBackend

SPOKEN = (
    "Yes No maybe not sure is the picture mostly red green blue dark bright a line at horizon of this image what color "
    "do you see in it ? . : , User Assistant USER ASSISTANT user assistant model system You are helpful strongly agree "
    "thought answer en"
)
WORDS = SPOKEN.split()
NAMED = ["<unk>", "<pad>", "<bos>", "<eos>"]
VOCABULARY = [*NAMED, *WORDS, *(f"▁{word}" for word in WORDS), "▁", "\n"]
OWN = len(VOCABULARY)  # special tokens follow
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GROUPED = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # two heads share keys and values
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def build_tokenizer(
    special: list[str] | dict[str, str],
    spaces_matter: bool = False,
    bos: bool = True,
    adds_bos: bool = False,
    pairs: bool = False,
) -> PreTrainedTokenizerFast:
    """One token per word. `special` words are kept whole; a mapping also names them as tokenizer attributes.

    With `spaces_matter`, " Yes" and "Yes" are different words, as in real vocabularies. Without `bos` there is no
    such token, as in Qwen's; with `adds_bos` the tokenizer writes it, as Llama's and Gemma's do. With `pairs` it tells
    a second text from the first.
    """
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")  # zero-width spaces are nothing
    spaced = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.pre_tokenizer = spaced if spaces_matter else pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>" if bos else None,
        eos_token="<eos>",
        extra_special_tokens=special,
    )
    if adds_bos:
        whole.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
    if pairs:
        whole.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A $B:1", [])
    return whole


def build_byte_tokenizer(kind: type[TokenizersBackend], special: list[str]) -> TokenizersBackend:
    """The same words for a class that transformers insists on; bytes merge until each word is one token."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = kind().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        special_tokens=NAMED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator([f"{word} {word}" for word in WORDS], trainer)
    model = json.loads(trained.to_str())["model"]
    return kind(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=special,
    )


def write_model(kind, config, folder: Path, factors: dict[str, float] | None = None, words: int = OWN) -> Path:
    """Random weights; `factors` scale those whose names end so. Tokens from `words` on are special."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough for answers to differ clearly between images, and for places to differ from each other.
            if parameter.ndim > 1:
                added = "position_embedding" in name or "cls_token" in name
                fan_in = parameter.shape[-1] if added else parameter[0].numel()
                parameter.copy_(torch.randn_like(parameter) * fan_in**-0.5)
            parameter.mul_(next((factor for end, factor in (factors or {}).items() if name.endswith(end)), 1))
        model.get_output_embeddings().weight[words:].mul_(0.1)  # so that no reply holds a placeholder for an image
    # Sampling settings and a penalty, as many released models have: a greedy reply has to ignore them.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.1
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.eos_token_id = 3
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    return folder
