"""The models that templates are made for, and the nodes that load them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .parts import Node

HUGGING_FACE = "https://huggingface.co"
COMFY_ORG = f"{HUGGING_FACE}/Comfy-Org"
KLEIN, Z_IMAGE, QWEN = (
    f"{COMFY_ORG}/{name}/resolve/main/split_files" for name in ("flux2-klein", "z_image_turbo", "Qwen-Image_ComfyUI")
)
KONTEXT, QWEN_EDIT = (
    f"{COMFY_ORG}/{name}/resolve/main/split_files/diffusion_models"
    for name in ("flux1-kontext-dev_ComfyUI", "Qwen-Image-Edit_ComfyUI")
)
SDXL_FILE = f"{HUGGING_FACE}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors"
ENCODERS = f"{HUGGING_FACE}/comfyanonymous/flux_text_encoders/resolve/main"
AE = f"{COMFY_ORG}/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae"


@dataclass(frozen=True)
class Models:
    """Nodes that load a generator and its critic, and where their wires begin, as "key.output".

    Attributes:
        name: as file names have it.
        label: as notes have it.
        guided: the generator's preset uses classifier-free guidance, which needs an empty prompt.
        downloaded: whose files are not part of the pack.
    """

    name: str
    label: str
    loaders: Mapping[str, Node]
    model: str
    clip: str
    vae: str
    critic: str
    critic_loader: Mapping[str, Node] = field(default_factory=dict)
    guided: bool = False
    downloaded: bool = True


def file(name: str, url: str, directory: str) -> dict[str, str]:
    return {"name": name, "url": url, "directory": directory}


def unet(name: str, folder: str) -> Node:
    """`folder` is the address that the file's name stands behind."""
    models = [file(name, f"{folder}/{name}", "diffusion_models")]
    return Node("UNETLoader", {"unet_name": name}, width=320, models=models)


def clip(name: str, folder: str, type: str) -> Node:
    widgets = {"clip_name": name, "type": type}
    return Node("CLIPLoader", widgets, width=320, models=[file(name, f"{folder}/{name}", "text_encoders")])


def vae(name: str, folder: str) -> Node:
    return Node("VAELoader", {"vae_name": name}, width=320, models=[file(name, f"{folder}/{name}", "vae")])


def downloaded(name: str, label: str, loaders: Mapping[str, Node], guided: bool = False) -> Models:
    """Models whose files ComfyUI offers to download, one ("checkpoint") or three ("unet", "clip", "vae")."""
    from_one = "checkpoint" in loaders
    return Models(
        name,
        label,
        loaders,
        *(f"{'checkpoint' if from_one else key}.{output}" for key, output in _OUTPUTS),
        "critic.critic",
        {"critic": Node("DualProcessLoadVLMCritic", {"model": "Qwen2.5-VL-7B-Instruct"}, width=320)},
        guided,
    )


_OUTPUTS = (("unet", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"))
_FLUX_1_PARTS = {
    "clip": Node(
        "DualCLIPLoader",
        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"},
        width=320,
        models=[
            file(name, f"{ENCODERS}/{name}", "text_encoders")
            for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors")
        ],
    ),
    "vae": vae("ae.safetensors", AE),
}

DEMO = Models(
    "demo",
    "the demo models",
    {"demo": Node("DualProcessLoadDemoModels", width=300)},
    *(f"demo.{output}" for output in ("model", "clip", "vae", "critic")),
    downloaded=False,
)
STROKES = replace(DEMO, loaders={"demo": Node("DualProcessLoadDemoStrokes", width=300)})
FLUX_SCHNELL = downloaded(
    "flux_schnell",
    "Flux schnell",
    {
        "unet": unet("flux1-schnell.safetensors", f"{COMFY_ORG}/flux1-schnell/resolve/main"),
        **_FLUX_1_PARTS,
    },
)
FLUX_DEV = downloaded(
    "flux_dev",
    "Flux dev",
    {"unet": unet("flux1-dev.safetensors", f"{COMFY_ORG}/flux1-dev/resolve/main"), **_FLUX_1_PARTS},
)
FLUX_2_KLEIN = downloaded(
    "flux2_klein",
    "FLUX.2 klein",
    {
        "unet": unet("flux-2-klein-4b.safetensors", f"{KLEIN}/diffusion_models"),
        "clip": clip("qwen_3_4b.safetensors", f"{KLEIN}/text_encoders", "flux2"),
        "vae": vae("flux2-vae.safetensors", f"{COMFY_ORG}/flux2-dev/resolve/main/split_files/vae"),
    },
)
Z_IMAGE_TURBO = downloaded(
    "z_image_turbo",
    "Z-Image turbo",
    {
        "unet": unet("z_image_turbo_bf16.safetensors", f"{Z_IMAGE}/diffusion_models"),
        "clip": clip("qwen_3_4b.safetensors", f"{Z_IMAGE}/text_encoders", "lumina2"),
        "vae": vae("ae.safetensors", f"{Z_IMAGE}/vae"),
    },
)
QWEN_IMAGE = downloaded(
    "qwen_image",
    "Qwen-Image",
    {
        "unet": unet("qwen_image_fp8_e4m3fn.safetensors", f"{QWEN}/diffusion_models"),
        "clip": clip("qwen_2.5_vl_7b_fp8_scaled.safetensors", f"{QWEN}/text_encoders", "qwen_image"),
        "vae": vae("qwen_image_vae.safetensors", f"{QWEN}/vae"),
    },
    guided=True,
)
SDXL = downloaded(
    "sdxl",
    "SDXL",
    {
        "checkpoint": Node(
            "CheckpointLoaderSimple",
            {"ckpt_name": "sd_xl_base_1.0.safetensors"},
            width=320,
            models=[file("sd_xl_base_1.0.safetensors", SDXL_FILE, "checkpoints")],
        )
    },
    guided=True,
)
FLUX_KONTEXT = downloaded(
    "flux_kontext",
    "Flux Kontext",
    {"unet": unet("flux1-dev-kontext_fp8_scaled.safetensors", KONTEXT), **_FLUX_1_PARTS},
)
QWEN_IMAGE_EDIT = downloaded(
    "qwen_image_edit",
    "Qwen-Image-Edit",
    {**QWEN_IMAGE.loaders, "unet": unet("qwen_image_edit_2509_fp8_e4m3fn.safetensors", QWEN_EDIT)},
    guided=True,
)
