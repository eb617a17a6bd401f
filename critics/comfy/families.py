# pyright: reportMissingImports=false
"""The families of vision-language models in ComfyUI that can judge pictures, and what each has of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from comfy.text_encoders.llama import precompute_freqs_cis
from comfy.text_encoders.qwen_vl import process_qwen2vl_images, qwen2vl_mrope_position_ids
from torch import Tensor, nn

from ...comfy_host.weights import overridden

MIN_PIXELS = 256 * 256  # of Qwen3-VL and Qwen3.5, as their preprocessor_config.json says
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


class Family(Protocol):
    """What a family of models has of its own. `model` is ComfyUI's module of the whole model."""

    name: str
    image_token: int

    def prompt(self, tokenizer: Any, text: str, pictures: int) -> str:
        """The model's chat template around pictures and a question, up to where the model's turn begins."""
        ...

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        """Height and width at which the model sees a picture; ComfyUI leaves a picture of this size as it is."""
        ...

    def look(self, model: Any, picture: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        """Embeddings of a picture [1, H, W, 3] of such a size, and what `context` has to know of it as "extra"."""
        ...

    def blocks(self, model: Any) -> list[nn.Module]:
        """The parts that hold nearly all of the weights, each small beside the whole."""
        ...

    def vision_output(self, model: Any) -> nn.Module:
        """The last layer that a picture passes on its way to the language model."""
        ...

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]], place: Tensor) -> dict[str, Any]:
        """What the language model has to know of the pictures among the embeddings [1, L, D], whose places are [L]."""
        ...

    def corrected(self, model: Any) -> AbstractContextManager[None]:
        """While entered, ComfyUI's model computes what transformers' does."""
        ...


class Qwen3VL:
    name = "Qwen3-VL"
    image_token = 151655

    def prompt(self, tokenizer: Any, text: str, pictures: int) -> str:
        return f"<|im_start|>user\n{QWEN_IMAGE * pictures}{text}<|im_end|>\n<|im_start|>assistant\n"

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        return _qwen_size(model, height, width, max_pixels)

    def look(self, model: Any, picture: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        return model.preprocess_embed({"type": "image", "data": picture}, device=device)

    def blocks(self, model: Any) -> list[nn.Module]:
        visual, language = model.visual, model.model
        head = [language.lm_head] if language.config.lm_head else []
        return [*visual.blocks, visual.merger, *visual.deepstack_merger_list, *language.layers, *head]

    def vision_output(self, model: Any) -> nn.Module:
        return model.visual.merger.linear_fc2

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]], place: Tensor) -> dict[str, Any]:
        positions, mask, deepstack = model.build_image_inputs(embeds, info)  # [3, L], as if all stood in their order
        return {"position_ids": positions[:, place], "visual_pos_masks": mask, "deepstack_embeds": deepstack}

    def corrected(self, model: Any) -> AbstractContextManager[None]:
        return nullcontext()


class Qwen35:
    name = "Qwen3.5"
    image_token = 248056

    def prompt(self, tokenizer: Any, text: str, pictures: int) -> str:
        # With a closed thought, as the template has it where thinking is off.
        turn = f"<|im_start|>user\n{QWEN_IMAGE * pictures}{text.strip()}<|im_end|>\n<|im_start|>assistant\n"
        return f"{turn}<think>\n\n</think>\n\n"

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        return _qwen_size(model, height, width, max_pixels)

    def look(self, model: Any, picture: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        # Not by ComfyUI's `preprocess_embed`, which takes the mean and deviation of CLIP's pictures.
        half = [0.5, 0.5, 0.5]
        patches, grid = process_qwen2vl_images(
            picture, patch_size=model.visual.patch_size, image_mean=half, image_std=half
        )
        return model.visual(patches.to(device), grid), grid

    def blocks(self, model: Any) -> list[nn.Module]:
        visual, language = model.visual, model.model
        return [*visual.blocks, visual.merger, *language.layers]

    def vision_output(self, model: Any) -> nn.Module:
        return model.visual.merger.linear_fc2

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]], place: Tensor) -> dict[str, Any]:
        return {"position_ids": qwen2vl_mrope_position_ids(info, embeds.shape[1], embeds.device)[:, place]}

    def corrected(self, model: Any) -> AbstractContextManager[None]:
        # Time, height and width take turns through a head's frequencies; ComfyUI gives each a stretch of them, which is
        # right where all three are one, as in texts.
        config = model.model.config
        rotated = int(config.head_dim * config.partial_rotary_factor)

        def frequencies(position_ids: Tensor, device: torch.device) -> Any:
            return precompute_freqs_cis(
                rotated,
                position_ids,
                config.rope_theta,
                rope_dims=config.mrope_section,
                device=device,
                interleaved_mrope=True,
            )

        return overridden(model.model, "compute_freqs_cis", frequencies)


def _qwen_size(model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
    side = model.visual.patch_size * model.visual.spatial_merge_size
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    pixels = rows * columns * side**2
    if pixels > max_pixels:
        scale = math.sqrt(max_pixels / (height * width)) / side
        rows, columns = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
    elif pixels < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (height * width)) / side
        rows, columns = math.ceil(height * scale), math.ceil(width * scale)
    return rows * side, columns * side


class Gemma4:
    name = "Gemma 4"
    image_token = 258880
    soft_tokens = 280  # the budget of one picture, whatever its size

    def prompt(self, tokenizer: Any, text: str, pictures: int) -> str:
        # The large models answer at once behind a closed thought, the small ones without it: so they were trained.
        thought = "<|channel>thought\n<channel|>" if getattr(tokenizer, "prime_empty_thought", False) else ""
        return f"<|turn>user\n{'<|image><|image|><image|>' * pictures}{text.strip()}<turn|>\n<|turn>model\n{thought}"

    def size(self, model: Any, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        side = model.vision_model.patch_size * model.vision_model.pooling_kernel_size
        scale = math.sqrt(self.soft_tokens * side**2 / (height * width))
        rows, columns = math.floor(scale * height / side), math.floor(scale * width / side)
        if rows == 0:
            rows, columns = 1, min(width // height, self.soft_tokens)
        elif columns == 0:
            rows, columns = min(height // width, self.soft_tokens), 1
        return rows * side, columns * side

    def look(self, model: Any, picture: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        image = {"type": "image", "data": picture, "max_soft_tokens": self.soft_tokens}
        return model.preprocess_embed(image, device=device)

    def blocks(self, model: Any) -> list[nn.Module]:
        encoder = getattr(model.vision_model, "encoder", None)  # the 12B has none
        return [*(() if encoder is None else encoder.layers), *model.model.layers]

    def vision_output(self, model: Any) -> nn.Module:
        return model.multi_modal_projector.embedding_projection

    def context(self, model: Any, embeds: Tensor, info: list[dict[str, Any]], place: Tensor) -> dict[str, Any]:
        return {"embeds_info": info, "position_ids": place[None]}

    @contextmanager
    def corrected(self, model: Any) -> Iterator[None]:
        # An image's tokens see one another in the large models' sliding layers only; ComfyUI lets them in all layers.
        # Before version 0.29 it lets them in none and knows no such setting: right for the small models.
        bidirectional = getattr(model.model.config, "vision_bidirectional", False)
        layers = [layer for layer in model.model.layers if bidirectional and not layer.sliding_attention]
        handles = [layer.register_forward_pre_hook(_mask_what_follows, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _mask_what_follows(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs["attention_mask"]  # [L, L], added to the scores; none while a reply is written token by token
    if mask is None:
        return args, kwargs
    follows = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return args, {**kwargs, "attention_mask": mask.masked_fill(follows, torch.finfo(mask.dtype).min)}
