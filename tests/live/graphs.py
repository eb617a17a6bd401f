"""API-format prompts of the tests, built from a few parts."""

from __future__ import annotations

from typing import Any

TRAINED = [
    *("a day sky over the sea", "a sunset sky over the sea", "a night sky over the sea"),
    *("a day sky over the sand", "a sunset sky over the sand", "a night sky over the sand"),
    *("a day sky over the grass", "a sunset sky over the grass", "a night sky over the grass"),
]
HELD_OUT = ["the sea under a day sky", "the sand under a sunset sky with a tree", "the grass under a night sky"]
SETTINGS = {
    "train_steps": 160,
    "learning_rate": 5e-4,
    "seed": 0,
    "batch_size": 4,
    "steps": 1,
    "scheduler": "simple",
    "cfg": 1.0,
    "rank": 16,
    "lora_alpha": 64.0,
    "lr_schedule": "cosine",
    "gradient_accumulation": 1,
    "velocity_weight": 0.5,
    "range_weight": 1.0,
    "max_grad_norm": 1.0,
    "stop_probability": 1.0,
    "timesteps": "sampler",
    "gradient_checkpointing": False,
}
PROCESS = {  # of Paint by Process
    **{"seed": 0, "budget": 6, "refinements": 2, "whole_draft": False, "restarts": 0, "restart_below": 0.3},
    **{"keep_psnr": 30.0, "patience": 2, "inspect": True, "roll_back": True},
}
Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def demo_parts(line: float = 0.3) -> Graph:
    """Models, an empty latent, and a horizon loss."""
    return {
        "demo": node("DualProcessLoadDemoModels"),
        "latent": node("EmptyLatentImage", width=112, height=112, batch_size=1),
        "overlay": node("DualProcessHorizonOverlay", position=line, color="#ff0000", thickness=0.02),
        "question": node(
            "DualProcessVLMQuestion",
            question="Is the overlaid red line aligned with the horizon of the scene?",
            answer="Yes",
            weight=1.0,
            overlay=["overlay", 0],
        ),
        "loss": node("DualProcessVQALoss", critic=["demo", 3], **{"questions.question0": ["question", 0]}),
    }


def distil(prompts: list[str] | None = None, line: float = 0.3, name: str = "live/horizon", **settings: Any) -> Graph:
    """Trains a LoRA on the demo models, saves it, and shows before and after."""
    prompts = prompts or TRAINED
    graph = demo_parts(line)
    graph |= {f"text{i}": node("CLIPTextEncode", clip=["demo", 1], text=text) for i, text in enumerate(prompts)}
    graph["distil"] = node(
        "DualProcessDistillLoRA",
        model=["demo", 0],
        vae=["demo", 2],
        latent=["latent", 0],
        loss=["loss", 0],
        **{f"conditionings.conditioning{i}": [f"text{i}", 0] for i in range(len(prompts))},
        **{**SETTINGS, **settings},
    )
    graph["save"] = node("DualProcessSaveDistilledLoRA", lora=["distil", 0], name=name, format="diffusers")
    graph["before"] = node("PreviewImage", images=["distil", 2])
    graph["after"] = node("PreviewImage", images=["distil", 3])
    return graph


def pictures(prompts: list[str], seeds: range, lora: str | None = None) -> Graph:
    """Plain text to image on the demo models, with a saved LoRA at strength 1.0 or without."""
    graph: Graph = {"demo": node("DualProcessLoadDemoModels")}
    model, clip = ["demo", 0], ["demo", 1]
    if lora:
        graph["lora"] = node(
            "LoraLoader", model=model, clip=clip, lora_name=lora, strength_model=1.0, strength_clip=1.0
        )
        model, clip = ["lora", 0], ["lora", 1]
    graph["latent"] = node("EmptyLatentImage", width=112, height=112, batch_size=1)
    for i, text in enumerate(prompts):
        graph[f"text{i}"] = node("CLIPTextEncode", clip=clip, text=text)
        for seed in seeds:
            key = f"{i}_{seed}"
            graph[f"sample{key}"] = node(
                "KSampler",
                model=model,
                positive=[f"text{i}", 0],
                negative=[f"text{i}", 0],
                latent_image=["latent", 0],
                seed=seed,
                steps=1,
                cfg=1.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            )
            graph[f"decode{key}"] = node("VAEDecode", samples=[f"sample{key}", 0], vae=["demo", 2])
            graph[f"save{key}"] = node("SaveImage", images=[f"decode{key}", 0], filename_prefix=f"live/{key}")
    return graph
