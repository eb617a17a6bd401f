"""Tiny random vision-language models as CLIPs that ComfyUI's own code has made, and the same as transformers' critics.

Real classes and processors; the widths for which ComfyUI has no option are put in their place while a test runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfyui
import pytest
import torch
from safetensors.torch import save_file
from tiny_clips import QWEN35_HEADS, QWEN35_MROPE, QWEN35_VISION, QWEN_VISION, WIDTHS, build_qwen, build_qwen35
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    Gemma4VideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.gemma4_unified import modeling_gemma4_unified

from dual_process.core.picture import Picture
from dual_process.critics import TransformersCritic


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    references: tuple[Picture, ...] = ()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def questions() -> list[Question]:
    return [
        Question("Is the house red?", "Yes"),
        Question("Does the line (in \\(red\\)) match embedding:foo the horizon?", "No, it does not"),
        Question("What is it?", "a tree"),
    ]


@pytest.fixture
def many_questions(questions) -> list[Question]:
    """Among them one with two answers, one that is the beginning of another, one twice, and answers of many tokens."""
    return [
        *questions,
        Question("Is the house red?", "No"),
        Question("Is the house red? Does it match the tree?", "Yes"),
        Question("What is it?", "a red house in a red line, not a tree"),
        Question("What is it?", "a tree"),
        Question("Is the", "No, it does not"),
    ]


@pytest.fixture
def images() -> torch.Tensor:
    """[2, 3, 256, 288]: not square, and a size that Qwen3-VL sees as it is."""
    return torch.rand(2, 3, 256, 288, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_critic(comfy) -> Callable[..., Any]:
    from dual_process.critics.comfy.clip import ClipCritic

    return ClipCritic


# Qwen3-VL

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def qwen_state() -> dict[str, torch.Tensor]:
    """The tensors of a file for CLIPLoader, with a language head of its own; float32."""
    return {name: tensor.detach().contiguous() for name, tensor in build_qwen().state_dict().items()}


@pytest.fixture
def load_qwen(comfy, qwen_state, monkeypatch, tmp_path) -> Callable[..., Any]:
    """Loads a file with these tensors as CLIPLoader does, in inference mode; the CLIP."""
    import comfy.sd
    import comfy.text_encoders.qwen3vl as qwen3vl

    def load(state: dict[str, torch.Tensor] = qwen_state, clip_type: str = "STABLE_DIFFUSION", **config: Any) -> Any:
        tiny = partial(qwen3vl.Qwen3VL_8BConfig, **WIDTHS, num_hidden_layers=3, **config)
        monkeypatch.setitem(qwen3vl.QWEN3VL_CONFIGS, "qwen3vl_8b", tiny)
        monkeypatch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_8b", QWEN_VISION)
        monkeypatch.setitem(qwen3vl.QWEN3VL_VISION_COMMON, "num_heads", 2)
        path = tmp_path / "tiny-qwen3vl.safetensors"
        save_file(state, path)
        with torch.inference_mode():
            return comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType[clip_type])

    return load


@pytest.fixture
def qwen(load_qwen) -> Any:
    return load_qwen()


@pytest.fixture(scope="session")
def qwen_reference() -> TransformersCritic:
    folder = comfyui.folder() / "comfy" / "text_encoders" / "qwen25_tokenizer"
    processor = _qwen_processor(Qwen2Tokenizer.from_pretrained(folder), QWEN_TEMPLATE)
    return TransformersCritic(build_qwen(), processor, "tiny")


def _qwen_processor(tokenizer: Any, template: str) -> Qwen3VLProcessor:
    half, size = [0.5, 0.5, 0.5], {"shortest_edge": 256 * 256, "longest_edge": 1024 * 1024}
    images = Qwen2VLImageProcessor(patch_size=16, image_mean=half, image_std=half, size=size)
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


# Qwen3.5

QWEN35_TEMPLATE = QWEN_TEMPLATE.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")


@pytest.fixture(scope="session")
def qwen35_tokenizer(tmp_path_factory) -> Path:
    """A folder with the words of Qwen3-VL's tokenizer and Qwen3.5's marks; some copies of ComfyUI lack its words."""
    given, folder = comfyui.folder() / "comfy" / "text_encoders", tmp_path_factory.mktemp("te") / "qwen35_tokenizer"
    shutil.copytree(given / "qwen25_tokenizer", folder)
    settings = json.loads((given / "qwen35_tokenizer" / "tokenizer_config.json").read_text())
    marks = {mark["content"]: int(index) for index, mark in settings["added_tokens_decoder"].items()}
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(words | marks))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def load_qwen35(comfy, qwen35_tokenizer, monkeypatch, tmp_path) -> Callable[..., Any]:
    """Loads a file with this model's tensors as CLIPLoader does, in inference mode; the CLIP."""
    import comfy.sd
    import comfy.text_encoders.qwen35 as qwen35

    def load(model: Any, clip_type: str = "STABLE_DIFFUSION") -> Any:
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        tied = model.config.tie_word_embeddings
        if tied:
            del state["lm_head.weight"]
        text = {"num_hidden_layers": 4, "mrope_section": QWEN35_MROPE, "lm_head": not tied}
        tiny = {**WIDTHS, **QWEN35_HEADS, **text, "vision": QWEN35_VISION}
        monkeypatch.setitem(qwen35.QWEN35_MODELS, "qwen35_2b", tiny)
        monkeypatch.setattr(qwen35, "__file__", str(qwen35_tokenizer.parent / "qwen35.py"))  # where it looks for it
        path = tmp_path / "tiny-qwen35.safetensors"
        save_file(state, path)
        with torch.inference_mode():
            return comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType[clip_type])

    return load


@pytest.fixture
def qwen35(load_qwen35) -> Any:
    return load_qwen35(build_qwen35())


@pytest.fixture
def make_qwen35_reference(qwen35_tokenizer) -> Callable[[Any], TransformersCritic]:
    def make(model: Any) -> TransformersCritic:
        tokenizer = Qwen2Tokenizer.from_pretrained(qwen35_tokenizer)
        return TransformersCritic(model, _qwen_processor(tokenizer, QWEN35_TEMPLATE), "tiny")

    return make


# Gemma 4: the small models have inputs for each layer and share keys and values, the large ones see images both ways,
# the unified one has no vision tower.

GEMMAS = ("small", "large", "unified")
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}<|image|>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}"
    "<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\nTHOUGHT{% endif %}"
)
WORDS = "user model thought Is the house red Yes No it does not Does line in match embedding foo horizon What is a tree"
MARKS = {"<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106, "<|image>": 255999, "<|image|>": 258880}
MARKS |= {"<|audio|>": 258881, "<image|>": 258882, "<|video|>": 258884}
TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
NAMES = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
NAMES |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
GEMMA_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA_VISION |= {"head_dim": 16, "position_embedding_size": 300}
UNIFIED_VISION = {"mm_embed_dim": 32, "output_proj_dims": 32, "mm_posemb_size": 300}
RENAMED = {  # transformers' names as ComfyUI's files have them
    "model.language_model.": "model.",
    "model.vision_tower.": "vision_model.",
    "model.embed_vision.multimodal_embedder.": "multi_modal_projector.",
    "model.embed_vision.embedding_projection": "multi_modal_projector.embedding_projection",
    "model.embed_vision.": "vision_model.",
}


def gemma_tokenizer() -> Tokenizer:
    words = [*TOKENS.values(), *dict.fromkeys(WORDS.split()), *"?,.:()\\"]
    vocabulary = {word: i for i, word in enumerate(words)} | MARKS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*TOKENS.values(), *MARKS])
    return tokenizer


def build_gemma(kind: str) -> Any:
    text = {**WIDTHS, "num_hidden_layers": 4, "vocab_size": 262144, "head_dim": 16, "global_head_dim": 32}
    text |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64}
    text |= {"final_logit_softcapping": 30.0, "use_bidirectional_attention": None if kind == "small" else "vision"}
    if kind == "small":
        text |= {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
    elif kind == "large":
        text |= {"hidden_size_per_layer_input": 0}
    else:
        text |= {"num_global_key_value_heads": 1, "attention_k_eq_v": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "unified":
            config = Gemma4UnifiedConfig(text_config=text, vision_config=UNIFIED_VISION, audio_config=None)
            model = Gemma4UnifiedForConditionalGeneration(config)
        else:
            vision = {**GEMMA_VISION, "num_key_value_heads": 2, "use_clipped_linears": True}
            config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
            model = Gemma4ForConditionalGeneration(config)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1 and "embed_tokens" not in name:
            tensor.mul_(8)
        elif name.endswith("put_max"):
            tensor.fill_(3.0)
        elif name.endswith("put_min"):
            tensor.fill_(-2.5)
    model.generation_config.eos_token_id = [1, 50, 106]
    return model.eval()


def gemma_class(kind: str) -> Any:
    """ComfyUI's class of this kind with tiny widths."""
    import comfy.text_encoders.gemma4 as gemma4

    unified, small = kind == "unified", kind == "small"

    @dataclass
    class Tiny(gemma4.Gemma4_12B_Config if unified else gemma4.Gemma4Config):
        hidden_size: int = 32
        intermediate_size: int = 48
        num_hidden_layers: int = 4
        num_attention_heads: int = 2
        num_key_value_heads: int = 1
        hidden_size_per_layer_input: int = 8 if small else 0
        num_kv_shared_layers: int = 2 if small else 0
        use_double_wide_mlp: bool = small
        head_dim = 16
        global_head_dim = 32
        sliding_attention = (64, False)
        vision_bidirectional = not small
        if unified:
            vision_config = gemma4.GEMMA4_UNIFIED_VISION_CONFIG | UNIFIED_VISION
        else:
            vision_config = gemma4.GEMMA4_VISION_CONFIG | GEMMA_VISION
            audio_config = None

    if not unified:
        return gemma4._make_variant(Tiny, prime_empty_thought=not small)

    class Unified(gemma4.Gemma4UnifiedBase):
        tokenizer = gemma4.Gemma4UnifiedTokenizer

        def __init__(self, config_dict, dtype, device, operations):
            super().__init__()
            self._init_model(Tiny(**config_dict), dtype, device, operations)

    return Unified


@pytest.fixture
def load_gemma(comfy, monkeypatch) -> Callable[[str], tuple[Any, TransformersCritic]]:
    """A CLIP over a tiny Gemma 4 of a kind, and transformers' critic over the same weights."""
    import comfy.sd
    import comfy.text_encoders.gemma4 as gemma4

    # In transformers 5.23 the unified model's forward masks otherwise than its `generate`, which is like the large's.
    masks = modeling_gemma4_unified.create_masks_for_vision_model
    monkeypatch.setattr(modeling_gemma4_unified, "create_masks_for_generate", masks)

    def load(kind: str) -> tuple[Any, TransformersCritic]:
        model, tokenizer, variant = build_gemma(kind), gemma_tokenizer(), gemma_class(kind)
        encoder = gemma4.gemma4_te(dtype_llama=torch.float32, model_class=variant)
        target = SimpleNamespace(params={}, clip=encoder, tokenizer=variant.tokenizer)
        file = torch.tensor(list(tokenizer.to_str().encode()), dtype=torch.uint8)
        with torch.inference_mode():
            state = comfy.utils.state_dict_prefix_replace(model.state_dict(), RENAMED)
            clip = comfy.sd.CLIP(target, tokenizer_data={"tokenizer_json": file}, state_dict=[state])
        return clip, gemma_reference(kind, model, tokenizer)

    return load


@pytest.fixture(params=GEMMAS)
def gemma(load_gemma, request) -> tuple[Any, TransformersCritic]:
    return load_gemma(request.param)


@pytest.fixture
def load_each(load_qwen, load_qwen35, load_gemma) -> Callable[[str], Any]:
    """A CLIP of a family, or of a kind of Gemma 4."""

    def load(name: str) -> Any:
        if name == "Qwen3-VL":
            return load_qwen()
        return load_qwen35(build_qwen35()) if name == "Qwen3.5" else load_gemma(name)[0]

    return load


@pytest.fixture(params=["Qwen3-VL", "Qwen3.5", "small"])
def clip(load_each, request) -> Any:
    """A CLIP of each family."""
    return load_each(request.param)


@pytest.fixture(params=["Qwen3-VL", "Qwen3.5", *GEMMAS])
def each_clip(load_each, request) -> Any:
    """A CLIP of each family, and of each kind in it."""
    return load_each(request.param)


def gemma_reference(kind: str, model: Any, tokenizer: Tokenizer) -> TransformersCritic:
    text_side = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS, extra_special_tokens=NAMES)
    thought = "" if kind == "small" else "<|channel>thought\n<channel|>"
    template = GEMMA_TEMPLATE.replace("THOUGHT", thought)
    if kind == "unified":
        parts = Gemma4UnifiedAudioFeatureExtractor(), Gemma4UnifiedImageProcessor()
        processor = Gemma4UnifiedProcessor(*parts, text_side, Gemma4UnifiedVideoProcessor(), chat_template=template)
    else:
        parts = Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor()
        processor = Gemma4Processor(*parts, text_side, Gemma4VideoProcessor(), chat_template=template)
    return TransformersCritic(model, processor, "tiny")
