# pyright: reportMissingImports=false
"""What a MODEL is told of a stroke: words, and the canvas in the ways that ComfyUI's own nodes hand it on."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import node_helpers
import torch
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from torch import Tensor

from ...core.errors import GeneratorError

GREY = 0.5  # what an inpaint model sees where it is to paint
QWEN_NODES = {False: (TextEncodeQwenImageEdit, "image"), True: (TextEncodeQwenImageEditPlus, "image1")}


def encoded(clip: Any, prompt: str) -> Any:
    """CONDITIONING of a prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def encoded_with_picture(clip: Any, prompt: str, picture: Tensor, plus: bool) -> Any:
    """CONDITIONING of an instruction and a picture [1, 3, H, W], as Qwen-Image-Edit, or its later versions, see it."""
    node, name = QWEN_NODES[plus]
    return node.execute(clip, prompt, **{name: picture.movedim(1, -1)}).args[0]  # BCHW -> BHWC


def with_values(conditioning: Any, **values: Any) -> Any:
    return node_helpers.conditioning_set_values(conditioning, values)


def with_reference(conditioning: Any, latent: Tensor) -> Any:
    return node_helpers.conditioning_set_values(conditioning, {"reference_latents": [latent]}, append=True)


def masked_picture(vae: Any, picture: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """What an inpaint model's CONDITIONING holds: the picture [1, 3, H, W] without what lies inside, and the mask.

    Args:
        inside: [1, 1, H, W], 1 where it is to paint.
    """
    masked = torch.where(inside > 0, GREY, picture)
    return {"concat_latent_image": vae.encode(masked.movedim(1, -1)), "concat_mask": inside}  # BCHW -> BHWC


def takes_masked_picture(model: Any, latent: Tensor) -> bool:
    """Whether a MODEL is an inpaint model: it sees a picture and a mask beside the latent, such as Flux Fill."""
    if latent.ndim != 4:
        return False
    mask = torch.ones_like(latent[:, :1])
    beside = model.model.concat_cond(noise=latent, device=latent.device, concat_latent_image=latent, concat_mask=mask)
    return beside is not None and beside.shape[1] > latent.shape[1]


def check_takes_references(model: Any, latent: Tensor) -> None:
    """Raises GeneratorError unless the MODEL's class has reference latents."""
    if "ref_latents" not in model.model.extra_conds_shapes(reference_latents=[latent]):
        raise GeneratorError(
            f"The MODEL is a {type(model.model).__name__}, which knows no reference latents. Load one that edits by "
            "reference, such as Flux Kontext, FLUX.2 or Qwen-Image-Edit, or choose the mode 'inpaint'."
        )


def check_sees_pictures(model: Any, clip: Any) -> None:
    """Raises GeneratorError unless both are Qwen-Image-Edit's."""
    if not isinstance(model.model, comfy.model_base.QwenImage):
        raise GeneratorError(
            f"The mode 'qwen edit' needs a Qwen-Image-Edit MODEL, got a {type(model.model).__name__}. Load one, or "
            "choose the mode 'reference' or 'inpaint'."
        )
    tokens = clip.tokenize("a", images=[torch.zeros(1, 28, 28, 3)])
    rows = (row for key in tokens.values() if isinstance(key, list) for row in key)
    if not any(isinstance(token[0], dict) for row in rows for token in row):
        raise GeneratorError(
            "The mode 'qwen edit' shows the canvas to CLIP, but this CLIP sees no pictures. Load Qwen2.5-VL as CLIP of "
            "type qwen_image."
        )
