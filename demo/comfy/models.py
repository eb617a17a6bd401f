# pyright: reportMissingImports=false
"""The demo models as real ComfyUI objects: MODEL, CLIP and VAE, on which all of ComfyUI's own nodes work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch
from comfy import sd1_clip
from comfy.taesd.taesd import Block
from comfy.text_encoders.flux import FluxClipModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from ...core.protocols import PRESET
from .. import WEIGHTS
from ..tokenizer import EOS, PAD

ENCODERS = ("text_encoder", "text_encoder_2")
TAESD_WIDTH, TAESD_BLOCKS = 64, ((1, 3, 3, 3), (3, 3, 3, 1))  # fixed in ComfyUI: encoder, decoder
CLIP_VOCABULARY = 49408  # fixed in ComfyUI
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # of ComfyUI's latent format for Flux, undone in the VAE


def load_models(folder: Path = WEIGHTS / "pipeline", preset: str = "demo") -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, float32; KSampler and VAEDecode give the pictures of `demo.load()`'s generator.

    Args:
        folder: a demo world's FluxPipeline.
        preset: the name of the settings that suit it.
    """
    model = comfy.sd.load_diffusion_model_state_dict(
        _weights(folder / "transformer"), model_options={"dtype": torch.float32}, disable_dynamic=True
    )
    model.set_attachments(PRESET, preset)
    vae = comfy.sd.VAE(sd=taesd_weights(_weights(folder / "vae")), dtype=torch.float32)
    _skip_empty_blocks(vae.first_stage_model)
    return model, _load_clip(folder), vae


def _skip_empty_blocks(taesd: nn.Module) -> None:
    """Saves the time of the blocks that only hand on their input; their weights stay, for VAESave."""
    for module in taesd.modules():
        if isinstance(module, Block) and not any(p.any() for p in module.parameters()):
            module.forward = _hand_on


def _hand_on(x: Tensor) -> Tensor:
    return x


def _weights(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def _load_clip(folder: Path) -> Any:
    clip_l, t5 = (json.loads((folder / part / "config.json").read_text()) for part in ENCODERS)

    class DemoTokenizer:
        """The demo's word-level tokenizer in the two places that Flux's text encoders have."""

        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            length = clip_l["max_position_embeddings"]
            self.clip_l, self.t5xxl = (_tokenizer(folder / "tokenizer", key, length) for key in ("clip_l", "t5xxl"))

        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, Any]:
            encoders = {"l": self.clip_l, "t5xxl": self.t5xxl}
            return {name: t.tokenize_with_weights(text, return_word_ids, **kwargs) for name, t in encoders.items()}

        def untokenize(self, tokens: Any) -> Any:
            return self.clip_l.untokenize(tokens)

        def state_dict(self) -> dict[str, Any]:
            return {}

    target = comfy.supported_models_base.ClipTarget(DemoTokenizer, _text_encoders)
    t5["dense_act_fn"] = "gelu_pytorch_tanh"  # what ComfyUI calls transformers' "gelu_new"
    configs = {"clip_l_model_config": clip_l, "t5xxl_model_config": t5}
    clip = comfy.sd.CLIP(target, model_options={**configs, "dtype": torch.float32}, disable_dynamic=True)
    words, sequence = (_weights(folder / part) for part in ENCODERS)
    words = {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in words.items()}
    table = "text_model.embeddings.token_embedding.weight"
    words[table] = F.pad(words[table], (0, 0, 0, CLIP_VOCABULARY - len(words[table])))
    clip.cond_stage_model.clip_l.load_sd(words)
    clip.cond_stage_model.t5xxl.load_sd(sequence)
    return clip


def _tokenizer(folder: Path, key: str, length: int) -> sd1_clip.SDTokenizer:
    return sd1_clip.SDTokenizer(
        str(folder),
        max_length=length,
        pad_with_end=False,
        embedding_key=key,
        tokenizer_class=PreTrainedTokenizerFast,
        has_start_token=False,
        pad_token=0,
    )


def _text_encoders(device: Any, dtype: Any, model_options: Any) -> FluxClipModel:
    """Flux's CLIP and T5 with the demo's special tokens."""
    encoders = FluxClipModel(dtype_t5=dtype, device=device, dtype=dtype, model_options=model_options)
    ids = {PAD: 0, EOS: 1}
    encoders.clip_l.special_tokens = {"start": None, "end": ids[EOS], "pad": ids[PAD]}
    return encoders


def taesd_weights(narrow: dict[str, Tensor]) -> dict[str, Tensor]:
    """A narrow diffusers AutoencoderTiny under the names and in the sizes of ComfyUI's TAESD, exactly.

    Missing channels are zero. Missing blocks are zero, too, and so hand on what they are given: a block adds to its
    input, which a ReLU before it has made positive.
    """
    wide = {"vae_scale": torch.tensor(FLUX_SCALE), "vae_shift": torch.tensor(FLUX_SHIFT)}
    for side, blocks in zip(("encoder", "decoder"), TAESD_BLOCKS, strict=True):
        for place, layer in _layers(narrow, side, blocks).items():
            wide |= {f"taesd_{side}.{place}.{key}": tensor for key, tensor in layer.items()}
    return wide


def _layers(narrow: dict[str, Tensor], side: str, blocks: tuple[int, ...]) -> dict[int, dict[str, Tensor]]:
    """Every layer with weights by its place in ComfyUI's Sequential; `blocks` of each stage."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in narrow.items():
        part, _, number, rest = key.split(".", 3)
        if part == side:
            layers.setdefault(int(number), {})[rest] = tensor
    first, last = min(layers), max(layers)
    found: dict[int, dict[str, Tensor]] = {}
    shift, stage = int(side == "decoder"), iter(blocks)  # ComfyUI's decoder has its clamp as layer 0
    for number, layer in sorted(layers.items()):
        wide = {key: _widen(t, inputs=number != first, outputs=number != last) for key, t in layer.items()}
        found[number + shift] = wide
        if "conv.0.weight" in wide:
            for _ in range(next(stage) - 1):
                shift += 1
                found[number + shift] = {key: torch.zeros_like(tensor) for key, tensor in wide.items()}
    return found


def _widen(tensor: Tensor, inputs: bool, outputs: bool) -> Tensor:
    """Pads the channels of a convolution's weight or bias with zeros; those of picture and latents stay."""
    more = (TAESD_WIDTH - tensor.shape[0]) * outputs
    if tensor.ndim == 1:
        return F.pad(tensor, (0, more))
    return F.pad(tensor, (0, 0, 0, 0, 0, (TAESD_WIDTH - tensor.shape[1]) * inputs, 0, more))
