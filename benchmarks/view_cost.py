"""What the live view in Distill LoRA costs: steps with and without it, in turns, in one run.

    COMFYUI_PATH=~/comfy/ComfyUI python benchmarks/view_cost.py --json

The demo models learn the horizon in one process with ComfyUI and its server on the CPU; a client takes every event off
the websocket, as a tab of the browser does. Ratios, so that machines can be compared.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import comfyui

PORT = 8197


def serve() -> list[int]:
    """Starts the server and a client in a thread; the sizes of the events that the client has taken so far."""
    import aiohttp
    from server import PromptServer

    sizes: list[int] = []
    ready = threading.Event()

    async def client() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{PORT}/ws") as socket:
            ready.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT and "dual_process.view" in message.data:
                    sizes.append(len(message.data))

    def run() -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        server = PromptServer(loop)
        server.add_routes()
        loop.run_until_complete(server.start("127.0.0.1", PORT))
        loop.run_until_complete(asyncio.gather(server.publish_loop(), client()))

    threading.Thread(target=run, daemon=True).start()
    ready.wait(120)
    return sizes


class Turns:
    """Called after every step: tells the view of every second one, and notes the CPU time that each step took.

    All threads count, so what the server does meanwhile does, too.
    """

    def __init__(self, view: Any, progress: Any) -> None:
        self.view, self.progress = view, progress
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.last = 0.0

    def __call__(self, report: Any, preview: Any) -> None:
        watched = report.step % 2 == 0
        if watched:
            self.progress(report, preview)
            self.view.on_step(report, preview)
        now = time.process_time()
        if report.step > 4:  # the first ones warm up
            self.seconds[watched].append(now - self.last)
        self.last = now


def main(
    steps: Annotated[int, typer.Option(help="Training steps, half of them with the view.")] = 84,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Prints the median step with the view as a share of one without, and a look at three pictures in steps."""
    if reason := comfyui.missing():
        raise SystemExit(f"Cannot run: {reason}")
    with tempfile.TemporaryDirectory() as base:
        comfyui.start(Path(base))
        sizes = serve()
        comfyui.load_pack()
        figures = measure(steps, sizes)
    print(json.dumps(figures, indent=2) if as_json else figures)


def measure(steps: int, sizes: list[int]) -> dict[str, float]:
    def part(name: str) -> ModuleType:
        return importlib.import_module(f"{comfyui.PACK}.{name}")

    held_out = part("evaluation.held_out")
    control = part("demo.controls").horizon_control(train_steps=steps)
    with torch.inference_mode():
        model, clip, vae = part("demo.comfy.models").load_models()
        texts = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in control.prompts]
    with torch.inference_mode(False):
        critic = part("demo").load(control.prompts)[1]
        latent = {"samples": torch.zeros(1, 16, 14, 14)}
        generator = part("generators.comfy.generator").ComfyGenerator(
            model, vae, texts, latent=latent, steps=1, prompts=control.prompts
        )
        view = part("nodes.view").View("0" * 32, "1", control.recipe, control.held_out[:3], ())
        turns = Turns(view, part("nodes.progress").Progress(control.recipe, "1", has_view=True))
        part("distillation").distill(generator, critic, control.recipe, turns)
        pairs = held_out.HeldOut(tuple(range(len(control.prompts) - 3, len(control.prompts))), (1, 2, 3))
        examiner = held_out.Examiner(generator, {"default": critic}, control.recipe, pairs)
        examiner.look(0.0)
        start = time.process_time()
        view.show(steps, examiner.look(1.0, other_size=False).images, {"score": 0.5})
        look = time.process_time() - start
    plain = statistics.median(turns.seconds[False])
    return {
        "step_with_view": round(statistics.median(turns.seconds[True]) / plain, 3),
        "look_in_steps": round(look / plain, 2),
        "bytes_an_event": round(statistics.mean(sizes)),
    }


if __name__ == "__main__":
    typer.run(main)
