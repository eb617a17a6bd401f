import logging

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from dual_process.core.errors import GeneratorError, LoraFileError
from dual_process.generators import load_generator
from dual_process.generators.architectures import ARCHITECTURES

PICTURES = ([0, 1], [3, 4])


def train(generator, randomize_lora, rank: int = 4, alpha: float = 6.0):
    generator.add_lora(rank, alpha, seed=2)
    randomize_lora(generator)
    return generator


def test_zero_lora_is_the_base_model(generator):
    base = generator.sample(*PICTURES)
    generator.add_lora(4, 10.0, seed=0)
    assert torch.equal(generator.sample(*PICTURES), base)


def test_scale_zero_is_the_base_model_and_scales_between_count(generator, randomize_lora):
    base = generator.sample(*PICTURES)
    train(generator, randomize_lora)
    trained, half = generator.sample(*PICTURES), generator.sample(*PICTURES, lora_scale=0.5)
    assert torch.equal(generator.sample(*PICTURES, lora_scale=0), base)
    assert (trained - base).abs().max() > 1e-3
    assert 0 < (half - base).abs().mean() < (trained - base).abs().mean()
    assert torch.equal(generator.sample(*PICTURES), trained)


def test_half_scale_equals_half_alpha(schnell, randomize_lora):
    half = train(schnell, randomize_lora, alpha=6.0).sample(*PICTURES, lora_scale=0.5)
    torch.testing.assert_close(train(schnell, randomize_lora, alpha=3.0).sample(*PICTURES), half, atol=1e-6, rtol=0)


def test_adapts_attention_and_feed_forward_of_both_kinds_of_block_only(schnell):
    schnell.add_lora(4, 6.0, seed=0)
    adapted = {name for name, module in schnell.network.named_modules() if isinstance(module, BaseTunerLayer)}
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    expected = {f"transformer_blocks.0.attn.{name}" for name in attention}
    expected |= {f"transformer_blocks.0.{ff}.net.{layer}" for ff in ("ff", "ff_context") for layer in ("0.proj", "2")}
    for n in (0, 1):
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
        expected |= {f"single_transformer_blocks.{n}.{name}" for name in names}
    assert adapted == expected  # the model's own proj_out is not among them
    assert set(schnell.lora_parameters()) == {f"{name}.lora_{part}" for name in expected for part in "AB"}


def test_fresh_weights_depend_on_the_seed_only(schnell):
    torch.manual_seed(1)
    expected = torch.rand(3)
    draws = []
    for global_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(global_seed)
        schnell.add_lora(8, 8.0, seed)
        draws.append({name: p.detach().clone() for name, p in schnell.lora_parameters().items()})
        if global_seed == 1:
            assert torch.equal(torch.rand(3), expected)
    name = "single_transformer_blocks.0.proj_mlp.lora_A"
    assert all(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    assert not torch.equal(draws[0][name], draws[2][name])
    deviation = torch.cat([value.flatten() for key, value in draws[0].items() if key.endswith("A")]).std().item()
    assert deviation == pytest.approx(1 / 8, rel=0.05)
    assert all(value.abs().max() == 0 for key, value in draws[0].items() if key.endswith("B"))


def test_weights_are_float32_on_a_bfloat16_model(folder, randomize_lora):
    generator = load_generator(folder, ["a red house"], "cpu", torch.bfloat16, height=64, width=64)
    base = generator.sample([0], [1], 2)
    train(generator, randomize_lora)
    assert {p.dtype for p in generator.lora_parameters().values()} == {torch.float32}
    assert generator.info.dtype == "bfloat16"
    assert base.dtype == torch.float32
    assert torch.equal(generator.sample([0], [1], 2, lora_scale=0), base)
    assert (generator.sample([0], [1], 2) - base).abs().max() > 1e-3


def test_adding_twice_replaces(schnell):
    schnell.add_lora(4, 6.0, seed=0)
    schnell.add_lora(2, 6.0, seed=0)
    assert schnell.lora_parameters()["transformer_blocks.0.attn.to_q.lora_A"].shape == (2, 32)
    assert list(schnell.network.peft_config) == ["dual_process"]


def test_removal_leaves_no_trace(schnell, randomize_lora):
    base, keys = schnell.sample(*PICTURES), list(schnell.network.state_dict())
    train(schnell, randomize_lora)
    schnell.remove_lora()
    assert not any(isinstance(module, BaseTunerLayer) for module in schnell.network.modules())
    assert list(schnell.network.state_dict()) == keys
    assert torch.equal(schnell.sample(*PICTURES), base)
    schnell.remove_lora()
    with pytest.raises(GeneratorError, match="none is attached"):
        schnell.lora_parameters()


def test_info_does_not_depend_on_the_lora(folder, generator, randomize_lora):
    before = generator.info
    other = train(load_generator(folder, ["a sea"], "cpu"), randomize_lora)
    assert other.info == before
    assert len(before.weights_sha256) == 64


@pytest.mark.parametrize("rank", [0, -1, 2.0, True])
def test_refuses_a_bad_rank(schnell, rank):
    with pytest.raises(GeneratorError, match="rank"):
        schnell.add_lora(rank, 1.0, seed=0)


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), "1"])
def test_refuses_a_bad_alpha(schnell, alpha):
    with pytest.raises(GeneratorError, match="alpha"):
        schnell.add_lora(4, alpha, seed=0)


# Files


def test_diffusers_loads_the_file_and_makes_the_same_pictures(
    generator, pipeline, run_pipeline, randomize_lora, tmp_path, caplog
):
    base = run_pipeline(pipeline, [3, 4])
    train(generator, randomize_lora, rank=4, alpha=10.0)
    save_file(generator.lora_state_dict(), tmp_path / "lora.safetensors")
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    expected = run_pipeline(pipeline, [3, 4])
    assert (expected - base).abs().max() > 1e-3
    torch.testing.assert_close(generator.sample([0, 0], [3, 4]), expected, atol=1e-4, rtol=0)
    warnings = [record.getMessage() for record in caplog.records]
    assert [text for text in warnings if "CLIPTextModel" not in text] == []  # every LoRA without CLIP gets that one


def test_diffusers_format(schnell):
    schnell.add_lora(4, 10.0, seed=0)
    state = schnell.lora_state_dict()
    key = "transformer.single_transformer_blocks.1.proj_out"
    assert state[f"{key}.lora_A.weight"].shape == (4, 32 + 128)
    assert state[f"{key}.lora_B.weight"].shape == (32, 4)
    assert state[f"{key}.alpha"].shape == ()
    assert state[f"{key}.alpha"] == 10.0
    assert len(state) == 22 * 3
    assert all(value.dtype == torch.float32 for value in state.values())


def test_the_state_is_a_copy(schnell):
    schnell.add_lora(4, 10.0, seed=0)
    schnell.lora_state_dict()["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"].zero_()
    assert schnell.lora_parameters()["transformer_blocks.0.attn.to_q.lora_A"].abs().max() > 0


def test_comfyui_format_is_the_same_lora_in_fused_layers(schnell, randomize_lora):
    train(schnell, randomize_lora, rank=3, alpha=7.0)
    parts, fused = schnell.lora_state_dict("diffusers"), schnell.lora_state_dict("comfyui")

    def delta(prefix: str) -> torch.Tensor:
        down, up = fused[f"{prefix}.lora_down.weight"], fused[f"{prefix}.lora_up.weight"]
        return up @ down * fused[f"{prefix}.alpha"] / down.shape[0]

    def stacked(*modules: str) -> torch.Tensor:
        keys = [f"transformer.{module}" for module in modules]
        return torch.cat([parts[f"{k}.lora_B.weight"] @ parts[f"{k}.lora_A.weight"] * 7.0 / 3 for k in keys])

    attn = "transformer_blocks.0.attn"
    expected = {
        "double_blocks.0.img_attn.qkv": stacked(f"{attn}.to_q", f"{attn}.to_k", f"{attn}.to_v"),
        "double_blocks.0.img_attn.proj": stacked(f"{attn}.to_out.0"),
        "double_blocks.0.txt_attn.qkv": stacked(f"{attn}.add_q_proj", f"{attn}.add_k_proj", f"{attn}.add_v_proj"),
        "double_blocks.0.txt_attn.proj": stacked(f"{attn}.to_add_out"),
        "double_blocks.0.img_mlp.0": stacked("transformer_blocks.0.ff.net.0.proj"),
        "double_blocks.0.img_mlp.2": stacked("transformer_blocks.0.ff.net.2"),
        "double_blocks.0.txt_mlp.0": stacked("transformer_blocks.0.ff_context.net.0.proj"),
        "double_blocks.0.txt_mlp.2": stacked("transformer_blocks.0.ff_context.net.2"),
    }
    for n in (0, 1):
        block = f"single_transformer_blocks.{n}"
        layers = (f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp")
        expected[f"single_blocks.{n}.linear1"] = stacked(*layers)
        expected[f"single_blocks.{n}.linear2"] = stacked(f"{block}.proj_out")
    assert len(fused) == 3 * len(expected)
    for name, value in expected.items():
        torch.testing.assert_close(delta(f"diffusion_model.{name}"), value, atol=1e-6, rtol=1e-5, msg=name)


def test_tables_name_each_layer_once():
    for block in (block for architecture in ARCHITECTURES for block in architecture.blocks):
        layers = [layer for parts in block.layers.values() for layer in parts]
        assert len(layers) == len(set(layers))


def test_refuses_another_format(schnell):
    schnell.add_lora(4, 10.0, seed=0)
    with pytest.raises(GeneratorError, match="'diffusers' or 'comfyui'"):
        schnell.lora_state_dict("kohya")


def test_loads_what_it_saved(schnell, randomize_lora):
    expected = train(schnell, randomize_lora, rank=3, alpha=7.0).sample(*PICTURES)
    state = schnell.lora_state_dict()
    schnell.add_lora(8, 1.0, seed=9)
    schnell.load_lora_state_dict(state)
    assert torch.equal(schnell.sample(*PICTURES), expected)
    assert all(torch.equal(value, state[key]) for key, value in schnell.lora_state_dict().items())
    assert all(p.requires_grad for p in schnell.lora_parameters().values())


def change(state, **changes):
    key = "transformer.transformer_blocks.0.attn.to_q"
    return {**state, **{f"{key}.{name.replace('__', '.')}": value for name, value in changes.items()}}


def test_refuses_a_lora_for_another_model(schnell):
    schnell.add_lora(4, 10.0, seed=0)
    state = schnell.lora_state_dict()
    missing = dict(list(state.items())[3:])
    for wrong, message in (
        (missing, "3 of 66 keys are missing .*attn.to_q.alpha"),
        ({**state, "lora_te.weight": torch.zeros(1)}, "1 are unexpected .*lora_te"),
        (schnell.lora_state_dict("comfyui"), "unexpected"),
        (change(state, lora_A__weight=torch.zeros(4, 3072)), "1 shapes differ .*to_q.lora_A"),
        (change(state, lora_B__weight=torch.zeros(32, 8)), "1 shapes differ .*to_q.lora_B"),
        (change(state, alpha=torch.tensor(3.0)), "one alpha"),
        ({}, "keys are missing"),
    ):
        with pytest.raises(LoraFileError, match=message):
            schnell.load_lora_state_dict(wrong)
    assert schnell.lora_state_dict().keys() == state.keys()


# Beside the user's own LoRA


@torch.no_grad()
def add_users_lora(pipeline, targets=("attn.to_q", "norm.linear")):
    pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=list(targets)), "users")
    random = torch.Generator().manual_seed(1)
    for name, parameter in pipeline.transformer.named_parameters():
        if ".lora_B.users" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)


def open_generator(pipeline):
    return load_generator(pipeline, ["a red house"], height=64, width=96, num_inference_steps=3)


def test_the_users_lora_stays_active_and_frozen(pipeline, run_pipeline, randomize_lora):
    plain = run_pipeline(pipeline, [3])
    add_users_lora(pipeline)
    with_users = run_pipeline(pipeline, [3])
    assert (with_users - plain).abs().max() > 1e-3
    generator = open_generator(pipeline)
    torch.testing.assert_close(generator.sample([0], [3]), with_users, atol=1e-5, rtol=0)
    base = generator.sample([0], [3])
    train(generator, randomize_lora)
    assert (generator.sample([0], [3]) - base).abs().max() > 1e-3
    assert torch.equal(generator.sample([0], [3], lora_scale=0), base)
    with generator.training():
        trainable = {id(p) for p in generator.network.parameters() if p.requires_grad}
        assert trainable == {id(p) for p in generator.lora_parameters().values()}
    generator.remove_lora()
    assert torch.equal(generator.sample([0], [3]), base)
    assert list(generator.network.peft_config) == ["users"]
    assert not any("dual_process" in name for name in generator.network.state_dict())


def test_a_disabled_lora_of_the_user_stays_disabled(pipeline, run_pipeline, randomize_lora):
    plain = run_pipeline(pipeline, [3])
    add_users_lora(pipeline)
    pipeline.disable_lora()
    generator = open_generator(pipeline)
    train(generator, randomize_lora)
    assert (generator.sample([0], [3]) - plain).abs().max() > 1e-3
    torch.testing.assert_close(generator.sample([0], [3], lora_scale=0), plain, atol=1e-5, rtol=0)
    generator.remove_lora()
    torch.testing.assert_close(generator.sample([0], [3]), plain, atol=1e-5, rtol=0)


def test_refuses_a_fused_lora(pipeline):
    add_users_lora(pipeline)
    pipeline.fuse_lora()
    with pytest.raises(GeneratorError, match="unfuse_lora"):
        open_generator(pipeline).add_lora(4, 4.0, seed=0)
