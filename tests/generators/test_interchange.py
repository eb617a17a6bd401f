"""LoRA files between hosts without a model, and what the command line says of them."""

from __future__ import annotations

import comfyui
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dual_process.cli import app
from dual_process.core.errors import LoraFileError
from dual_process.generators.architectures import ARCHITECTURES
from dual_process.generators.architectures.stable_diffusion_3 import STABLE_DIFFUSION_3
from dual_process.generators.interchange import converted, recognised
from dual_process.generators.lora import LoraLayer, write

HORIZON_LORA = comfyui.ROOT / "demo" / "loras" / "dual_process_demo" / "horizon_at_0.30.safetensors"
FORMATS = ("diffusers", "comfyui", "kohya")
RANK, WIDTH = 2, 6


def random_lora(architecture, alpha=3.0):
    """A LoRA of every layer of block 0 and 1 of an architecture, in diffusers' names."""
    random = torch.Generator().manual_seed(4)
    layers = {}
    for block in architecture.blocks:
        for number in ("0", "1") if "{}" in block.diffusers else ("",):
            for native, parts in block.layers.items():
                ends = [ratio for end, ratio in architecture.ratios.items() if native.endswith(end)]
                columns, height = ends[0] if ends else (1, 1)
                for i, part in enumerate(parts):
                    rows = WIDTH * (2 if i == 3 else height)  # what a fused layer holds beside query, key and value
                    shapes = ((RANK, WIDTH * columns), (rows, RANK))
                    matrices = (torch.randn(*shape, generator=random) for shape in shapes)
                    layers[f"{block.diffusers.replace('{}', number)}.{part}"] = LoraLayer(*matrices, alpha)
    return write(layers, "diffusers", architecture)


def changes(state):
    """What the LoRA adds to each layer, by its name in diffusers."""
    file = recognised(converted(state, "diffusers"))
    return {name: layer.alpha / len(layer.down) * layer.up @ layer.down for name, layer in file.layers.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.label)
@pytest.mark.parametrize("there", FORMATS)
def test_there_and_back_changes_nothing(architecture, there):
    state = random_lora(architecture)
    assert recognised(state).architecture.blocks[0] == architecture.blocks[0]
    other = converted(state, there)
    assert recognised(other).format in (there, "kohya")
    for back in FORMATS:
        found = changes(converted(other, back))
        wanted = changes(state)
        assert found.keys() == wanted.keys()
        for name, change in wanted.items():
            torch.testing.assert_close(found[name], change, atol=1e-5, rtol=1e-5, msg=name)


def test_stable_diffusion_3_is_not_taken_for_flux():
    state = {name: tensor for name, tensor in random_lora(STABLE_DIFFUSION_3).items() if ".attn2." not in name}
    plain = {name: tensor for name, tensor in state.items() if ".norm1." not in name}
    for kept in (state, plain):
        assert recognised(kept).architecture is STABLE_DIFFUSION_3
        assert all(name.startswith("diffusion_model.joint_blocks.") for name in converted(kept, "comfyui"))


def test_what_comfyui_fuses_comes_back_as_small_as_it_was():
    state = random_lora(ARCHITECTURES[0])
    once = converted(converted(state, "comfyui"), "diffusers")
    twice = converted(converted(once, "comfyui"), "diffusers")
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no tensors"),
        ({"transformer.a.lora_A.weight": torch.zeros(2, 2)}, "one is missing"),
        ({"lokr_w1": torch.zeros(2)}, "plain LoRA"),
        ({f"text_encoder.a.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}, "No known architecture .Flux.1"),
    ],
)
def test_other_files_are_refused(state, message):
    with pytest.raises(LoraFileError, match=message):
        converted(state, "comfyui")


def test_a_part_of_a_fused_layer_has_no_name_in_comfyui():
    state = {key: tensor for key, tensor in random_lora(ARCHITECTURES[0]).items() if ".to_k." not in key}
    with pytest.raises(LoraFileError, match="only some of these"):
        converted(state, "comfyui")


def test_the_name_in_the_metadata_decides_between_architectures_of_the_same_layers():
    attention = {
        f"transformer.transformer_blocks.0.attn.{layer}.lora_{part}.weight": torch.randn(*shape)
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
        for part, shape in (("A", (2, WIDTH)), ("B", (WIDTH, 2)))
    }
    for name, key in (
        ("flux-1-dev", "double_blocks.0.img_attn.proj"),
        ("qwen-image", "transformer_blocks.0.attn.to_q"),
    ):
        assert f"diffusion_model.{key}.lora_down.weight" in converted(attention, "comfyui", name)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_the_command_converts_and_keeps_dtype_and_metadata(tmp_path):
    target = tmp_path / "horizon.safetensors"
    assert run("convert", HORIZON_LORA, "--to", "kohya", "--output", target).exit_code == 0
    tensors = load_file(target)
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in tensors
    assert {t.dtype for name, t in tensors.items() if not name.endswith(".alpha")} == {torch.bfloat16}
    again = run("convert", HORIZON_LORA, "--to", "kohya", "--output", target)
    assert again.exit_code == 1
    assert "is there already" in " ".join(again.stderr.split())
    found = run("inspect", target)
    assert found.exit_code == 0
    for words in ("aligned with the horizon", '"position": 0.3', "LEARNED", "flux-1-schnell", "200 steps", "of kohya"):
        assert words in found.stdout


def test_inspect_says_what_it_can_of_a_foreign_file(tmp_path):
    save_file({f"lora_te_a.lora_{x}.weight": torch.zeros(2, 2) for x in ("down", "up")}, tmp_path / "a.safetensors")
    found = run("inspect", tmp_path / "a.safetensors")
    assert "another trainer" in found.stdout
    assert "No known architecture" in found.stdout
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors", {"dual_process.recipe": "{"})
    assert "Expected JSON" in run("inspect", tmp_path / "b.safetensors").stderr
