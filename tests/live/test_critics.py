"""Critics on a real ComfyUI server: one for many nodes, memory back when asked, and one made of a CLIP."""

from __future__ import annotations

import sys

import comfyui
import pytest
from graphs import demo_parts, distil, node, pictures
from live_server import Server
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_clips import build_qwen

sys.path.insert(0, str(comfyui.ROOT / "benchmarks"))
pytestmark = pytest.mark.comfyui
MB = 2**20


@pytest.fixture(scope="module")
def clip_file(server):
    """A tiny Qwen3-VL for CLIPLoader."""
    state = {name: tensor.detach().bfloat16().contiguous() for name, tensor in build_qwen().state_dict().items()}
    save_file(state, server.base / "models" / "text_encoders" / "tiny-qwen3vl.safetensors")
    return "tiny-qwen3vl.safetensors"


def from_clip(clip_name):
    return {
        "clip": node("CLIPLoader", clip_name=clip_name, type="stable_diffusion"),
        "critic": node("DualProcessCriticFromCLIP", clip=["clip", 0], max_size=256),
    }


def test_a_clip_trains_a_lora(server, clip_file):
    graph = distil(["a day sky over the sea", "a night sky over sand"], name="live/clip", train_steps=3, batch_size=1)
    graph |= from_clip(clip_file)
    graph["loss"]["inputs"]["critic"] = ["critic", 0]
    graph["graph"] = node("LossGraphNode", loss=["distil", 1], filename_prefix="loss")
    graph["still_encodes"] = node("CLIPTextEncode", clip=["clip", 0], text="a tree")
    graph["shape"] = node("DualProcessAskVLMCritic", critic=["critic", 0], image=["distil", 3], max_new_tokens=2)
    graph["shape"]["inputs"]["questions.question0"] = ["question", 0]
    outputs = server.run(graph)
    assert "P(Yes) = " in outputs["shape"]["text"][0]
    path = server.base / "models" / "loras" / outputs["save"]["text"][0].removeprefix("saved as ")
    with safe_open(path, "pt") as file:
        assert "Qwen3-VL" in file.metadata()["dual_process.critics"]
        ups = [file.get_tensor(name) for name in file.keys() if "lora_B" in name or "lora_up" in name]  # noqa: SIM118
    assert ups
    assert all(tensor.abs().sum() > 0 for tensor in ups)
    assert server.run(graph)  # the second time from the cache


def test_a_clip_without_vision_is_refused(server):
    graph = demo_parts()
    graph["critic"] = node("DualProcessCriticFromCLIP", clip=["demo", 1], max_size=1024)
    graph |= pictures(["the sea"], range(1))
    graph["ask"] = node("DualProcessAskVLMCritic", critic=["critic", 0], image=["decode0_0", 0], max_new_tokens=2)
    graph["ask"]["inputs"]["questions.question0"] = ["question", 0]
    message = server.error(graph)
    assert "which has no vision" in message
    assert "Load a Qwen3-VL, Qwen3.5 or Gemma 4" in message


@pytest.fixture
def fresh(tmp_path):
    """A server that has run nothing: what others left in memory must not count."""
    running = Server(tmp_path)
    yield running
    running.close()


@pytest.fixture
def large_critic(fresh):
    """A random Qwen2.5-VL of about 450 MB; its name and size in bytes."""
    from critic_questions import write_model

    folder = fresh.base / "models" / "VLM" / "someone" / "large"
    write_model(folder)
    return "someone/large", sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_two_nodes_share_one_model_and_free_gives_the_memory_back(fresh, large_critic):
    name, size = large_critic
    graph = pictures(["the sea"], range(1))
    for which in ("first", "second"):
        graph[which] = node("DualProcessLoadVLMCritic", model=name, dtype="float32", device="cpu")
        graph[f"ask {which}"] = node(
            "DualProcessAskVLMCritic", critic=[which, 0], image=["decode0_0", 0], max_new_tokens=1
        )
        graph[f"question {which}"] = node("DualProcessVLMQuestion", question=f"{which} ?", answer="Yes", weight=1.0)
        graph[f"ask {which}"]["inputs"]["questions.question0"] = [f"question {which}", 0]
    fresh.run(graph)  # imports take memory that stays
    fresh.free()
    before = fresh.resident_bytes()
    fresh.run(graph)
    held = fresh.resident_bytes() - before
    print(f"two nodes hold {held / MB:.0f} MB for a critic of {size / MB:.0f} MB")
    assert 0.8 * size < held < 1.6 * size
    fresh.free()
    fresh.wait(lambda: fresh.resident_bytes() < 1.05 * before, "give the memory back")
