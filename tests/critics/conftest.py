"""Tiny critics of all families, and the naive computations that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from dual_process.core.picture import Picture
from dual_process.critics import TransformersCritic, load_critic

# What each family's template makes of a question, written out by hand, and what stands between it and the answer.
# Where the template also writes <bos>, the tokenizer adds it to this.
PROMPTS = {
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen3": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_5": (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "idefics2": "User:<image>{}<end_of_utterance>\nAssistant:",
    "idefics3": "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
    "smolvlm": "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
    "llava": "USER: <image>\n{} ASSISTANT:",
    "pixtral": "[INST][IMG]{}[/INST]",
    "mistral3": "[INST][IMG]{}[/INST]",
    "internvl": "<|im_start|>user\n<IMG_CONTEXT>\n{}<|im_end|>\n<|im_start|>assistant\n",
    "gemma3": "<start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n",
    "gemma4": "<|turn>user\n\n\n<|image|>\n\n{}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>",
    "gemma4_e": "<|turn>user\n<|image|>{}<turn|>\n<|turn>model\n",
    "paligemma": "<image>answer en {}",  # its processor adds "\n"
}
# What stands for a picture in them.
PICTURES = {
    **dict.fromkeys(["qwen", "qwen3", "qwen3_5"], "<|vision_start|><|image_pad|><|vision_end|>"),
    **dict.fromkeys(["idefics2", "idefics3", "smolvlm", "paligemma"], "<image>"),
    **dict.fromkeys(["pixtral", "mistral3"], "[IMG]"),
    "llava": "<image>\n",
    "internvl": "<IMG_CONTEXT>\n",
    "gemma3": "<start_of_image>",
    "gemma4": "\n\n<|image|>\n\n",
    "gemma4_e": "<|image|>",
}
GAPS = dict.fromkeys(PROMPTS, "") | dict.fromkeys(["idefics2", "idefics3", "smolvlm", "llava"], " ")
TILING = {
    "idefics2": "do_image_splitting",
    "idefics3": "do_image_splitting",
    "smolvlm": "do_image_splitting",
    "internvl": "crop_to_patches",
    "gemma3": "do_pan_and_scan",
}


@dataclass(frozen=True)
class Asked:
    text: str
    answer: str = "Yes"
    references: tuple[Picture, ...] = ()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("critics")
    return {name: write(root / name) for name, write in FAMILIES.items()}


@pytest.fixture(scope="session")
def critics(folders: dict[str, Path]) -> dict[str, TransformersCritic]:
    return {name: load_critic(folder, device="cpu") for name, folder in folders.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def critic(critics: dict[str, TransformersCritic], family: str) -> TransformersCritic:
    return critics[family]


@pytest.fixture
def images() -> Tensor:
    """Two upright pictures, 56 × 84: darker to the right, the second one also towards the bottom."""
    noise = torch.rand(2, 3, 56, 84, generator=torch.Generator().manual_seed(1)) * 0.3
    across, down = torch.linspace(0.6, 0, 84), torch.linspace(0.1, 0, 56)
    return noise + across + torch.stack([torch.zeros(56), down])[:, None, :, None]


class Naive:
    """The same folder without any code of ours: the processor's full call, one image and one question at a time."""

    def __init__(self, folder: Path, family: str) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision")
        self.tiling = {TILING[family]: False} if family in TILING else {}
        for name in self.tiling:
            setattr(self.processor.image_processor, name, False)  # where Idefics2's processor reads it
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.family = family

    def prompt(self, text: str, pictures: int = 1) -> str:
        one = PICTURES[self.family]
        return PROMPTS[self.family].replace(one, one * pictures).format(text)

    def inputs(
        self, image: Any, prompt: str, answered: str = "", rescale: bool = False, references: Sequence[Any] = ()
    ) -> dict[str, Tensor]:
        options = {"do_rescale": rescale, **self.tiling}
        if self.family == "paligemma":
            return self.inputs_with_suffix(image, prompt, answered, options)
        text = [prompt + answered]
        shown = [image, *references]
        if self.family == "idefics2" and isinstance(image, Tensor):  # its processor opens files and PIL images only
            stand_ins = [Image.new("RGB", (one.shape[-1], one.shape[-2])) for one in shown]
            whole = self.processor(text=text, images=[stand_ins], return_tensors="pt")
            return {**whole, **self.processor.image_processor(images=[shown], return_tensors="pt", **options)}
        return dict(self.processor(text=text, images=[shown], images_kwargs=options, return_tensors="pt"))

    def inputs_with_suffix(self, image: Any, prompt: str, answered: str, options: dict[str, Any]) -> dict[str, Tensor]:
        """Without the labels for training and, behind a suffix, the end of sequence."""
        whole = self.processor(
            text=[prompt], images=[[image]], suffix=[answered], images_kwargs=options, return_tensors="pt"
        )
        return {
            name: value if name == "pixel_values" else value[:, :-1]
            for name, value in whole.items()
            if name != "labels"
        }

    @torch.no_grad()
    def next_token(self, inputs: dict[str, Tensor]) -> Tensor:
        """log P of every token to come next, [vocabulary]."""
        return torch.log_softmax(self.model(**inputs).logits[0, -1].double(), dim=-1)

    def log_likelihood(self, image: Tensor, text: str, words: list[str], references: Sequence[Tensor] = ()) -> float:
        """Word by word, each on a fresh pass over all the text before it."""
        answered, total, prompt = "", 0.0, self.prompt(text, 1 + len(references))
        for word in words:
            gap = GAPS[self.family] if word is words[0] else " "
            token = self.processor.tokenizer.tokenize(gap + word)
            assert len(token) == 1, token
            scores = self.next_token(self.inputs(image, prompt, answered, references=references))
            total += float(scores[self.processor.tokenizer.convert_tokens_to_ids(token[0])])
            answered += gap + word
        return total

    def greedy(self, image: Tensor, text: str, count: int) -> list[int]:
        inputs = self.inputs(image, self.prompt(text))
        tokens: list[int] = []
        while len(tokens) < count and tokens[-1:] != [self.processor.tokenizer.eos_token_id]:
            tokens.append(int(self.next_token(inputs).argmax()))
            for name, value in inputs.items():
                in_suffix = name == "token_type_ids" and self.family == "paligemma"
                new = {"input_ids": tokens[-1], "attention_mask": 1}.get(name, int(in_suffix))
                if "token_type" in name or name in ("input_ids", "attention_mask"):
                    inputs[name] = torch.cat([value, torch.tensor([[new]])], dim=1)
        return tokens


@pytest.fixture(scope="session")
def naives(folders: dict[str, Path]) -> dict[str, Naive]:
    return {name: Naive(folder, name) for name, folder in folders.items()}


@pytest.fixture
def naive(naives: dict[str, Naive], family: str) -> Naive:
    return naives[family]


@pytest.fixture
def ask() -> Callable[..., Asked]:
    """Makes a question: ask(text, answer="Yes", references=())."""
    return Asked


@pytest.fixture
def passed_to_model() -> Callable[[TransformersCritic, Callable[[], Any]], dict[str, Tensor]]:
    """Runs a call and returns what the critic's model was given in it."""

    def run(critic: TransformersCritic, call: Callable[[], Any]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        hook = critic.model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
        try:
            call()
        finally:
            hook.remove()
        return seen

    return run
