"""A LoRA on half of the blocks: which layers that is, and that no graph is kept of the blocks before the last half."""

from __future__ import annotations

import importlib
import re
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_flux import PROMPTS
from torch.utils._pytree import tree_flatten

from dual_process.core.protocols import Draw
from dual_process.generators import load_generator
from dual_process.generators.architectures.flux import FLUX
from dual_process.generators.architectures.layers import splits
from dual_process.generators.architectures.stable_diffusion import unet_blocks
from dual_process.generators.targets import chosen

WHOLE = "attention + feed-forward"
HALF = f"{WHOLE}, last half"
NAMES = sorted(p.stem for p in (Path(__file__).parent / "comfy_tinies").glob("[a-z]*.py"))
COMFY_TINIES = [tiny for name in NAMES for tiny in importlib.import_module(f"comfy_tinies.{name}").TINIES]
POINT = Draw((0, 1), (3, 4), (1, 1))


def rows(blocks, modules, host):
    """As a generator of the host gives a network's layers, whose modules these are."""
    found = splits(blocks, [f"{module}.x" for module in modules], host)
    return [(native, *parts) if host == "comfyui" else (*parts, native) for native, parts in found]


def picked_blocks(layers, targets, host):
    natives = [names[0 if host == "comfyui" else -1] for names in layers]
    return {name for name, take in zip(natives, chosen(layers, targets), strict=True) if take}


FLUX_MODULES = {
    "comfyui": [*(f"double_blocks.{i}" for i in range(19)), *(f"single_blocks.{i}" for i in range(38))],
    "diffusers": [
        *(f"transformer_blocks.{i}" for i in range(19)),
        *(f"single_transformer_blocks.{i}" for i in range(38)),
    ],
}


@pytest.mark.parametrize("host", ["comfyui", "diffusers"])
@pytest.mark.parametrize("targets", [WHOLE, "attention", "all linear", r".*linear\d"])
def test_of_flux_it_is_the_last_29_blocks_of_57(host, targets):
    layers = rows(FLUX.blocks, FLUX_MODULES[host], host)
    half = picked_blocks(layers, f"{targets}, last half", host)
    assert {".".join(name.split(".")[:2]) for name in half} == {f"single_blocks.{i}" for i in range(9, 38)}
    assert half == {name for name in picked_blocks(layers, targets, host) if ".".join(name.split(".")[:2]) in
                    {f"single_blocks.{i}" for i in range(9, 38)}}  # fmt: skip
    assert picked_blocks(layers, f"{targets}, first half", host) == picked_blocks(layers, targets, host) - half


@pytest.mark.parametrize("host", ["comfyui", "diffusers"])
def test_of_a_unet_it_is_the_way_up(host):
    table = tuple(unet_blocks())
    there = [block for block in table if not block.diffusers.startswith(("down_blocks.3", "up_blocks.0"))]
    modules = [block.name(host).format(0) for block in there]
    half = picked_blocks(rows(table, modules, host), HALF, host)
    assert len({name.split(".transformer_blocks")[0] for name in half}) == 8  # of 16 places with attention
    assert all(name.startswith("output_blocks.") for name in half)


def test_of_three_blocks_the_first_half_is_one():
    layers = [(f"blocks.{i}.attn.qkv",) for i in range(3)]
    assert chosen(layers, f"{WHOLE}, first half") == [True, False, False]
    assert chosen(layers, HALF) == [False, True, True]


class Kept:
    """A tensor that a graph keeps for as long as this lives."""

    def __init__(self, tensor):
        self.tensor = tensor


class Saved:
    """Bytes of activations that the graph keeps, at the end and, but for its inputs, when the first block with a LoRA
    begins."""

    def __init__(self, generator, network):
        self.early = None
        self._weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self._kept = weakref.WeakSet()
        layers = {name.rpartition(".")[0] for name in generator.lora_parameters()}
        blocks = {re.match(r".*?transformer_blocks\.\d+|.*?\.\d+", name).group() for name in layers}
        self._handles = [
            network.get_submodule(n).register_forward_pre_hook(self._begun, with_kwargs=True) for n in blocks
        ]

    def _begun(self, _, *inputs):
        if self.early is None and torch.is_grad_enabled():
            given = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, torch.Tensor)]
            self.early = self._bytes(but={tensor.untyped_storage().data_ptr() for tensor in given})

    def _bytes(self, but=frozenset()):
        storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.nbytes for kept in self._kept}
        return sum(size for place, size in storages.items() if place not in self._weights | but)

    def _pack(self, tensor):
        kept = Kept(tensor)
        self._kept.add(kept)
        return kept

    @contextmanager
    def counting(self):
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor):
            yield
        self.total = self._bytes()
        for handle in self._handles:
            handle.remove()


def saved_by(generator, network, targets):
    generator.add_lora(2, 4.0, seed=0, targets=targets)
    with generator.training():
        saved = Saved(generator, network)
        with saved.counting():
            prediction = generator.estimate(POINT, ["prediction"]).prediction
    assert prediction.requires_grad
    return saved


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["flux", "stable_diffusion", "z_image"])
def test_diffusers_keeps_no_graph_of_the_first_half(name, checkpointing):
    tiny = importlib.import_module(f"pipelines.{name}").TINIES[0]
    size = {"height": tiny.size, "width": tiny.size, "num_inference_steps": 3}
    generator = load_generator(tiny.build(), PROMPTS, "cpu", gradient_checkpointing=checkpointing, **size)
    whole, half = (saved_by(generator, generator.network, targets) for targets in (WHOLE, HALF))
    assert half.early == 0
    assert 0 < half.total < 0.9 * whole.total


@pytest.mark.comfyui
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tiny", COMFY_TINIES, ids=lambda tiny: tiny.name)
def test_comfyui_keeps_no_graph_of_the_first_half(comfy, tiny, checkpointing):
    from dual_process.generators.comfy.generator import ComfyGenerator

    options = {"steps": 3, **tiny.options, "gradient_checkpointing": checkpointing}
    if options.get("cfg", 1) != 1:
        options["negative"] = tiny.conditioning(1)
    positive = [tiny.conditioning(0), tiny.conditioning(1)]
    generator = ComfyGenerator(
        *tiny.build(torch.float32), positive, latent={"samples": torch.zeros(tiny.latent)}, **options
    )
    network = generator.model.model.diffusion_model
    whole, half = (saved_by(generator, network, targets) for targets in (WHOLE, HALF))
    assert half.early == 0
    assert 0 < half.total < 0.9 * whole.total
