"""What several questions about one picture cost a critic, asked in one sequence (fast) or as a row each.

    python benchmarks/critic_questions.py --json

A random Qwen2.5-VL of about 100 M weights in float32 on one CPU core, 300 prompt tokens, 20 of them the question's
own. Every row is measured in a fresh process: loss and gradient of the picture, `cpu_seconds` the median of
three, `peak_mb` the most memory beyond what was held just before the first.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peak_memory import MB, Peak, resident
from rich.progress import track
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from dual_process.critics import load_critic
from dual_process.distillation import Question

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models.qwen import QWEN_TEMPLATE
from tiny_models.shared import WORDS, build_tokenizer

SIZE = 448  # pixels: 16 × 16 image tokens
SHARED_WORDS, OWN_WORDS = 11, 17


def write_model(folder: Path, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> None:
    """A model folder with random weights; `text` and `vision` change the sizes of the model's parts."""
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = build_tokenizer(names)
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    ).save_pretrained(folder)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 640, "intermediate_size": 2304, "num_hidden_layers": 12, "num_attention_heads": 10,
            "num_key_value_heads": 2, "vocab_size": 16384, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
            **(text or {}),
        },
        vision_config={
            "depth": 8, "hidden_size": 480, "intermediate_size": 1280, "num_heads": 8, "out_hidden_size": 640,
            "fullatt_block_indexes": [3, 7],
            **(vision or {}),
        },
        image_token_id=ids[4], video_token_id=ids[5], vision_start_token_id=ids[2], vision_end_token_id=ids[3],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


def make_questions(k: int) -> list[Question]:
    """Questions that begin alike and have 17 words and 3 tokens of the template to themselves."""
    return [
        Question(" ".join([*WORDS[:SHARED_WORDS], *(WORDS[(i + j) % len(WORDS)] for j in range(OWN_WORDS))]))
        for i in range(k)
    ]


def measure(folder: Path, k: int, fast: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    critic = load_critic(folder, device="cpu")
    critic.share_prefix = fast
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def step() -> None:
        image.grad = None
        (-critic.log_likelihood(image, make_questions(k)).mean()).backward()

    with torch.no_grad():  # weights come from the disk when they are first used
        critic.log_likelihood(image.detach(), make_questions(1))
    gc.collect()
    before = resident()
    with Peak() as peak:
        step()
    seconds = []
    for _ in range(3):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    row = critic.processor(
        text=[critic.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": make_questions(1)[0].text}]}],
            add_generation_prompt=True)],
        images=[[torch.zeros(3, SIZE, SIZE)]],
    )  # fmt: skip
    return {
        "k": k,
        "fast": fast,
        "cpu_seconds": round(statistics.median(seconds), 3),
        "peak_mb": round((peak.bytes - before) / MB, 1),
        "prompt_tokens": len(row["input_ids"][0]),
        "parameters_m": round(sum(p.numel() for p in critic.model.parameters()) / 1e6, 1),
    }


def main(
    counts: Annotated[list[int] | None, typer.Option("--k", help="Numbers of questions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Prints a row for each number of questions, in one sequence and as a row each."""
    rows = []
    # Large tensors get memory of their own, which is given back when they go, and so counts only while they are there.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # bytes; read when a process starts
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        cases = [(k, fast) for fast in (True, False) for k in counts or (1, 2, 4, 8)]
        for k, fast in track(cases, disable=as_json):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                rows.append(fresh.submit(measure, Path(folder), k, fast).result())
    print(json.dumps(rows, indent=2) if as_json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    typer.run(main)
