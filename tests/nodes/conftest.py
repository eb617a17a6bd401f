"""The pack, loaded as ComfyUI loads a folder of custom_nodes."""

from __future__ import annotations

import asyncio
from types import ModuleType

import comfyui
import pytest
import torch
from node_inputs import EMPTY, QUESTION, SETTINGS


@pytest.fixture(scope="session")
def pack(comfy) -> ModuleType:
    return comfyui.load_pack()


@pytest.fixture(scope="session")
def nodes(pack) -> dict[str, type]:
    """Every node class by its id."""

    async def collect():
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(collect())}


@pytest.fixture
def run(nodes):
    """Executes a node as ComfyUI does, in inference mode; its outputs."""

    from comfy_api.latest import io

    def execute(node_id: str, **inputs):
        hidden = {
            io.Hidden.unique_id: "1",
            io.Hidden.prompt: {"1": {"class_type": node_id}},
            io.Hidden.extra_pnginfo: {"workflow": {}},
        }
        node = nodes["DualProcess" + node_id].PREPARE_CLASS_CLONE({"hidden_inputs": hidden})
        with torch.inference_mode():
            return node.EXECUTE_NORMALIZED(**inputs)

    return execute


@pytest.fixture(scope="session")
def demo_models(nodes):
    """MODEL, CLIP, VAE, CRITIC."""
    with torch.inference_mode():
        return nodes["DualProcessLoadDemoModels"].execute().args


@pytest.fixture(scope="session")
def encode(demo_models):
    def encode_text(text):
        import nodes as core

        with torch.inference_mode():
            return core.CLIPTextEncode().encode(demo_models[1], text)[0]

    return encode_text


@pytest.fixture
def loss(run, demo_models):
    overlay = run("HorizonOverlay", position=0.3, color="#ff0000", thickness=0.02)[0]
    question = run("VLMQuestion", question=QUESTION, answer="Yes", weight=1.0, overlay=overlay)[0]
    return run("VQALoss", critic=demo_models[3], questions={"question0": question})[0]


@pytest.fixture
def distil(run, demo_models, encode, loss):
    def execute(**changes):
        prompts = {
            f"conditioning{i}": encode(t) for i, t in enumerate(["a day sky over the sea", "a night sky over sand"])
        }
        inputs = {
            "model": demo_models[0],
            "vae": demo_models[2],
            "conditionings": prompts,
            "latent": EMPTY,
            "loss": loss,
        }
        return run("DistillLoRA", **{**inputs, **SETTINGS, **changes})

    return execute


@pytest.fixture
def vlm_folder(comfy, demo_models):
    from dual_process.demo import WEIGHTS

    folder = comfy / "models" / "VLM" / "someone" / "tiny-critic"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        folder.symlink_to(WEIGHTS / "critic")
    return folder
