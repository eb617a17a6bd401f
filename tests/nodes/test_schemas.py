"""What users see of the nodes before they run them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib import import_module

import comfyui
import pytest

pytestmark = pytest.mark.comfyui

# Ids, sockets and widgets as saved workflows know them: by position. Append only.
INPUTS = {
    "LoadVLMCritic": ["model", "dtype", "device", "quantization", "gradient_checkpointing", "download", "max_size"],
    "LoadDemoModels": [],
    "LoadDemoStrokes": ["critic"],
    "LoadDemoComparingCritic": [],
    "CriticFromCLIP": ["clip", "max_size"],
    "VLMQuestion": [
        "question",
        "answer",
        "weight",
        "overlay",
        "contrast",
        "prompts",
        "paraphrases",
        "guards",
        "references",
        "grades",
    ],
    "KeepQuestion": ["question", "answer", "weight", "overlay", "prompts"],
    "VQALoss": ["critic", "loss", "questions"],
    "HorizonOverlay": ["position", "color", "thickness", "overlay", "tilt", "image"],
    "PaletteOverlay": ["colors", "height", "overlay", "side", "reference", "reference_colors"],
    "ImageOverlay": ["image", "mode", "opacity", "mask", "overlay"],
    "LineWeight": ["thickness", "color", "x", "y", "length", "compare", "overlay"],
    "DepthPoints": ["points", "color", "radius", "overlay", "order", "image"],
    "Composition": ["regions", "lines", "texts", "color", "thickness", "overlay", "image"],
    "ApplyOverlay": ["image", "overlay"],
    "AskVLMCritic": ["critic", "image", "max_new_tokens", "questions"],
    "DistillLoRA": [
        *("model", "vae", "conditionings", "latent", "loss", "negative", "sigmas", "train_steps", "learning_rate"),
        *("seed", "batch_size", "steps", "scheduler", "cfg", "rank", "lora_alpha", "lr_schedule"),
        *("gradient_accumulation", "velocity_weight", "range_weight", "max_grad_norm", "stop_probability"),
        *("timesteps", "gradient_checkpointing", "memory", "anchor_weight", "anchor_pool", "referee"),
    ],
    "SaveDistilledLoRA": ["lora", "name", "format"],
    "OverlayRange": ["first", "last"],
    "Slider": ["model", "lora_name", "value", "lora"],
    "TrainingPrompts": ["clip", "text", "held_out", "file", "guidance"],
    "PromptsFromConditionings": ["texts", "prompts", "conditionings"],
    "LoadDistillationCheckpoint": ["run"],
    "PickFavourites": [
        *("model", "vae", "prompts", "critic", "picks", "preset", "round_steps", "learning_rate", "seed", "latent"),
        *("negative", "candidates", "comparison", "rank", "memory"),
    ],
    "Painter": [
        *("model", "clip", "vae", "mode", "width", "height", "steps", "cfg", "sampler", "scheduler", "negative"),
        *("guidance", "denoise", "denoise_whole", "grow", "mask"),
    ],
    "PlanImage": ["prompt", "own_plan", "critic"],
    "PaintByProcess": [
        *("painter", "critic", "prompt", "seed", "budget", "refinements", "whole_draft", "plan", "image", "resume"),
        *("restarts", "restart_below", "keep_psnr", "patience", "inspect", "roll_back"),
    ],
    "ProcessStep": ["painter", "critic", "trajectory", "instruction", "local_prompt", "keep", "seed", "mask"],
    "InspectImage": ["critic", "image", "plan"],
    "SaveTrajectory": ["trajectory", "name"],
    "LoadTrajectory": ["folder"],
    "Distill": [
        *("model", "vae", "prompts", "loss", "preset", "train_steps", "learning_rate", "seed", "latent", "negative"),
        *("sigmas", "resume", "referee", "width", "height", "batch_size", "steps", "scheduler", "cfg", "rank"),
        *("lora_alpha", "lr_schedule", "gradient_accumulation", "anchor_weight", "anchor_pool", "velocity_weight"),
        *("range_weight", "max_grad_norm", "stop_probability", "timesteps", "gradient_checkpointing", "memory"),
        *("look_every", "patience", "give", "checkpoint_every", "existing_lora"),
        *("keep_questions", "structure_weight", "lora_targets", "target_pattern", "gradient_vae", "wordings"),
    ],
    "DistillProcess": [
        *("clip", "critic", "teach", "target_weight", "held_out", "saved", "guidance", "loss", "trajectories"),
    ],
}


def test_ids_and_inputs_stay_as_saved_workflows_know_them(nodes):
    found = {i.removeprefix("DualProcess"): [x.id for x in node.GET_SCHEMA().inputs] for i, node in nodes.items()}
    assert found == INPUTS


@pytest.mark.parametrize("broken", ["import", "schema"])
def test_a_module_that_fails_takes_no_other_nodes_with_it(pack, nodes, monkeypatch, caplog, broken):
    extension = import_module(f"{pack.__name__}.nodes.extension")
    demo = f"{pack.__name__}.nodes.demo"
    if broken == "import":
        monkeypatch.setitem(sys.modules, demo, None)  # importing it fails
    else:
        monkeypatch.setattr(sys.modules[demo].LoadDemoModels, "GET_SCHEMA", lambda: 1 / 0)
    found = asyncio.run(extension.DualProcessExtension().get_node_list())
    assert {node.GET_SCHEMA().node_id for node in found} == set(nodes) - {
        "DualProcessLoadDemoModels",
        "DualProcessLoadDemoStrokes",
        "DualProcessLoadDemoComparingCritic",
    }
    (record,) = caplog.records
    reason = "ModuleNotFoundError" if broken == "import" else "ZeroDivisionError: division by zero"
    assert all(part in record.getMessage() for part in ("nodes/demo.py", reason, "requirements.txt"))


def test_schemas_are_valid_and_in_one_category(nodes):
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        schema.validate()
        assert schema.category == "dual process"
        assert schema.node_id.startswith("DualProcess")
        assert len(schema.description) > 30


def test_every_input_and_output_has_a_tooltip(nodes):
    counted = 0
    for node_id, node in nodes.items():
        schema = node.GET_SCHEMA()
        for item in [i for x in schema.inputs for i in x.get_all()] + schema.outputs:
            assert item.tooltip, f"{node_id}: {item.id or item.display_name} has no tooltip"
            assert len(item.tooltip) > 10
            counted += 1
    assert counted > 60


def test_every_node_has_a_help_page_that_names_its_sockets(nodes):
    for node_id, node in nodes.items():
        page = (comfyui.ROOT / "web" / "docs" / f"{node_id}.md").read_text()
        schema = node.GET_SCHEMA()
        missing = [x.id for x in schema.inputs if f"`{x.id}`" not in page]
        missing += [x.display_name for x in schema.outputs if f"`{x.display_name}`" not in page]
        assert not missing, f"{node_id}: its help page leaves out {missing}"


def test_the_pack_adds_less_than_a_second_of_imports(comfy):
    code = f"""
import asyncio, importlib.util, json, sys, time
sys.path.insert(0, {str(comfyui.folder())!r}); sys.argv = ["main.py", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import comfy.sd, nodes, server, comfy_api.latest, comfy_extras.nodes_train
before, started = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location("pack", {str(comfyui.ROOT / "__init__.py")!r},
    submodule_search_locations=[{str(comfyui.ROOT)!r}])
pack = importlib.util.module_from_spec(spec); sys.modules["pack"] = pack; spec.loader.exec_module(pack)
async def collect():
    extension = await pack.comfy_entrypoint()
    return [node.GET_SCHEMA() for node in await extension.get_node_list()]
asyncio.run(collect())
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([time.process_time() - started, sorted(new)]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, new = json.loads(out.stdout.splitlines()[-1])
    assert not {"diffusers", "peft", "matplotlib", "skimage", "accelerate"} & set(new)
    assert seconds < 1
