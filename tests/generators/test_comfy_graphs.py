"""What a user's graph brings along: LoRAs, wrappers, caches, hooks, quantised, offloaded and streamed weights."""

from __future__ import annotations

import json

import pytest
import torch
from comfy_models import SIZE, conditionings, write_files
from pretended import PretendedDevice

from dual_process.core.streaming import blocks_of
from dual_process.distillation import Draw, GeneratorError
from dual_process.generators.targets import chosen

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}
DRAW = Draw((0,), (5,), (0,))


@pytest.fixture
def models(comfy):
    """MODEL and VAE, loaded as nodes do."""
    unet, _ = write_files(comfy / "models", "schnell")
    import nodes

    with torch.inference_mode():
        return nodes.UNETLoader().load_unet(unet.name, "default")[0], nodes.VAELoader().load_vae(
            "tiny-vae.safetensors"
        )[0]


def generator_for(model, vae, texts=None, **changes):
    from dual_process.generators.comfy.generator import ComfyGenerator

    return ComfyGenerator(model, vae, texts or conditionings(), latent=EMPTY, **changes)


def trained(model, vae, **changes):
    """A generator whose LoRA is random, as after training."""
    generator = generator_for(model, vae, **changes)
    generator.add_lora(4, 8.0, seed=1)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in generator.lora_parameters().items():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return generator


def learn(generator):
    """The prediction at one point, and the gradient of a fixed functional of it."""
    with generator.training():
        prediction = generator.estimate(DRAW).prediction
        weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(9))
        (prediction * weights).mean().backward()
    return prediction.detach(), {name: p.grad.clone() for name, p in generator.lora_parameters().items()}


def assert_same(ours, theirs, bound):
    def relative(a, b):
        return float((a - b).norm() / b.norm())

    assert relative(ours[0], theirs[0]) <= bound
    assert {name: r for name, g in ours[1].items() if (r := relative(g, theirs[1][name])) > bound} == {}


def ksampler(model, vae):
    """Core's own picture, [1, 3, H, W]."""
    import nodes

    text = conditionings()[0]
    with torch.inference_mode():
        (latent,) = nodes.KSampler().sample(model, 42, 4, 1.0, "euler", "simple", text, text, EMPTY)
        return nodes.VAEDecode().decode(vae, latent)[0].clone().movedim(-1, 1)  # BHWC -> BCHW


def with_lora(model, vae):
    """The MODEL with a LoRA of the user, merged into its weights when it is loaded."""
    import comfy_extras.nodes_train

    state = trained(model, vae).lora_state_dict("comfyui")
    with torch.inference_mode():
        return comfy_extras.nodes_train.LoraModelLoader.execute(model, state, 1.0, False).result[0]


def test_the_fingerprint_is_that_of_the_base_weights(models):
    model, vae = models
    base, theirs = generator_for(model, vae).info.weights_sha256, with_lora(model, vae)
    weight = model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    before = weight.clone()
    generator_for(theirs, vae).sample([0], [1])
    assert not torch.equal(model.model.diffusion_model.double_blocks[0].img_attn.qkv.weight, before)  # now merged
    assert generator_for(theirs, vae).info.weights_sha256 == base


def test_wrappers_of_the_model_stay_in_force(models):
    from comfy.patcher_extension import WrappersMP

    model, vae = models
    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "half", lambda run, *a, **k: run(*a, **k) * 0.5)
    pictures = generator_for(wrapped, vae).sample([0], [42])
    assert torch.allclose(pictures, ksampler(wrapped, vae), atol=2e-6)
    assert not torch.allclose(pictures, ksampler(model, vae), atol=1e-3)


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode", "TorchCompileModel"])
def test_what_single_steps_cannot_have_is_left_out_and_said(models, caplog, name):
    from comfy_extras import nodes_easycache, nodes_torch_compile

    model, vae = models
    if name == "TorchCompileModel":
        theirs = nodes_torch_compile.TorchCompileModel.execute(model, "inductor").result[0]
    else:
        theirs = getattr(nodes_easycache, name).execute(model, 0.2, 0.15, 0.95, False).result[0]
    before = {kind: list(keys) for kind, keys in theirs.wrappers.items()}
    assert_same(learn(trained(theirs, vae)), learn(trained(model, vae)), 0)
    assert {kind: list(keys) for kind, keys in theirs.wrappers.items()} == before
    assert "Training leaves" in caplog.text


def test_hooks_are_refused(models):
    import comfy.hooks

    texts = conditionings()
    texts[1][0][1]["hooks"] = comfy.hooks.HookGroup()
    with pytest.raises(GeneratorError, match="Apply the LoRA to the MODEL"):
        generator_for(*models, texts)


def test_a_conditioning_that_fails_leaves_nothing_behind(models):
    model, vae = models
    texts = conditionings()
    texts[0][0][0] = "not a tensor"
    generator = generator_for(model, vae, texts)
    with pytest.raises((AttributeError, TypeError)), generator.training():
        generator.estimate(DRAW)
    assert model.model.current_patcher is None
    assert generator_for(model, vae).sample([0], [1]).shape == (1, 3, SIZE, SIZE)


def quantised(state):
    """ComfyUI's scaled fp8 form of a state dict, and the same numbers in float32."""
    config = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    stored, plain = dict(state), dict(state)
    for name, weight in state.items():
        if name.endswith(".weight") and weight.ndim == 2 and "_blocks." in name:
            layer, scale = name.removesuffix("weight"), weight.abs().max() / 448
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored |= {f"{layer}weight_scale": scale.float(), f"{layer}comfy_quant": config.clone()}
            plain[name] = stored[name].float() * scale
    return stored, plain


def test_quantised_weights_train_as_their_numbers_in_float32(models):
    import comfy.sd
    from comfy.quant_ops import QuantizedTensor

    model, vae = models
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
        stored, plain = (comfy.sd.load_diffusion_model_state_dict(part) for part in quantised(state))
    generator_for(stored, vae).sample([0], [1])  # has loaded it, as the first run does
    before = [(name, id(p), p.is_inference(), p.requires_grad) for name, p in stored.model.named_parameters()]
    assert sum(isinstance(p.data, QuantizedTensor) for p in stored.model.parameters()) > 8
    assert_same(learn(trained(stored, vae)), learn(trained(plain, vae)), 1e-4)
    after = [(name, id(p), p.is_inference(), p.requires_grad) for name, p in stored.model.named_parameters()]
    assert after == before


@pytest.mark.parametrize("with_a_lora", [False, True])
def test_quantised_weights_pass_through_the_device_block_by_block(models, monkeypatch, with_a_lora):
    import comfy.sd
    from comfy.quant_ops import QuantizedTensor

    model, vae = models
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
        theirs = comfy.sd.load_diffusion_model_state_dict(quantised(state)[0])
    theirs = with_lora(theirs, vae) if with_a_lora else theirs
    resident = trained(theirs, vae)
    wanted, pictures = learn(resident), resident.sample([0], [42])
    generator = trained(theirs, vae, offload="blocks")
    device = pretend(generator, monkeypatch)
    assert torch.float8_e4m3fn in {tensor.dtype for tensor, _ in device._home.values()}
    assert_same(learn(generator), wanted, 1e-5)
    torch.testing.assert_close(generator.sample([0], [42]), pictures, rtol=1e-6, atol=1e-6)
    assert device.most_blocks == 2
    stored = [p for p in theirs.model.parameters() if isinstance(p.data, QuantizedTensor)]
    assert len(stored) > 8
    assert all(p._qdata.float().isfinite().all() for p in stored)


def test_a_quantised_tensor_is_said_to_be_where_it_will_be():
    """On a GPU, ComfyUI's layers would copy one that calls itself a tensor of the CPU."""
    from comfy.quant_ops import QuantizedTensor

    from dual_process.comfy_host.borrowed import _said_to_be_on

    given = QuantizedTensor.from_float(torch.randn(4, 8), "TensorCoreFP8E4M3Layout")
    made = _said_to_be_on(torch.device("meta"), given)
    assert made.device.type == "meta"
    assert made._qdata is given._qdata
    assert torch.equal(made.dequantize(), given.dequantize())


def pretend(generator, monkeypatch):
    whole, decoder = generator.model.model, generator.vae.first_stage_model
    with torch.inference_mode(False), generator._visits.in_force():
        blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(whole))}
        return PretendedDevice({"network": [whole], "decoder": [decoder], **blocks}, monkeypatch)


def test_weights_in_a_format_of_their_own_stay_with_comfyui(models, caplog):
    """As those of other nodes' loaders, whose patchers or tensors are of their own making."""
    import comfy.model_patcher

    class OwnPatcher(comfy.model_patcher.ModelPatcher):
        pass

    model, vae = models
    wanted = learn(trained(model, vae))
    model.__class__ = OwnPatcher
    generator = trained(model, vae, offload="blocks")
    assert not generator.keeps_graph
    assert "the weights of the MODEL are loaded by a OwnPatcher in a way of its own" in caplog.text
    assert_same(learn(generator), wanted, 0)
    model.__class__ = comfy.model_patcher.ModelPatcher
    parameter = vae.first_stage_model.vae_scale

    class OwnTensor(torch.Tensor):
        pass

    vae.first_stage_model.vae_scale = torch.nn.Parameter(parameter.data.clone().as_subclass(OwnTensor), False)
    trained(model, vae, offload="blocks")
    assert "the weights of the VAE are in a format that cannot be streamed, OwnTensor" in caplog.text


def test_weights_that_only_comfyui_can_stream_get_a_second_copy(models, monkeypatch, caplog):
    import comfy.model_patcher

    model, vae = models
    wanted = learn(trained(model, vae))

    class OwnPatcher(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

        def clone(self, disable_dynamic=False, **options):
            return model_of_its_own().clone() if disable_dynamic else super().clone(**options)

    def model_of_its_own():
        import nodes

        with torch.inference_mode():
            return nodes.UNETLoader().load_unet("tiny-schnell.safetensors", "default")[0]

    model.__class__ = OwnPatcher
    generator = trained(model, vae)
    assert generator.model.model is not model.model
    assert "a second copy of it is made in main memory" in caplog.text.lower()
    assert "--disable" not in caplog.text
    assert_same(learn(generator), wanted, 0)
    model.cached_patcher_init = None
    with pytest.raises(GeneratorError, match="Use one of ComfyUI's own loaders") as refused:
        generator_for(model, vae)
    assert "--disable" not in str(refused.value)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_of_the_user_applied_layer_by_layer_in_low_vram(models, monkeypatch, checkpointing):
    import comfy.model_management

    model, vae = models
    theirs = with_lora(model, vae)
    merged = learn(trained(theirs, vae))
    generator = trained(theirs, vae, gradient_checkpointing=checkpointing)
    patcher = generator.model
    with torch.inference_mode():
        patcher.unpatch_model(patcher.offload_device)
        patcher.load(patcher.load_device, lowvram_model_memory=1000)
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_, **__: None)  # would load it fully
    assert_same(learn(generator), merged, 1e-6)
    assert sum(len(getattr(layer, "weight_function", ())) for layer in patcher.model.modules()) > 8


def test_layers_of_transformers_without_a_table():
    """Names of linear layers as they stand in ComfyUI's models."""
    adapted = [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.txt_mlp.2",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "joint_blocks.0.x_block.attn.qkv",
        "joint_blocks.0.context_block.mlp.fc1",
        "layers.0.attention.qkv",
        "layers.0.feed_forward.w1",
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.img_mlp.net.0.proj",
        "blocks.0.self_attn.q",
        "blocks.0.ffn.0",
        "blocks.0.cross_attn.q_linear",
        "double_layers.0.mlpX.c_fc1",
    ]
    others = [
        "double_blocks.0.img_mod.lin",
        "single_blocks.0.modulation.lin",
        "layers.0.adaLN_modulation.1",
        "transformer_blocks.0.img_mod.1",
        "joint_blocks.0.x_block.adaLN_modulation.1",
        "input_blocks.1.0.emb_layers.1",
    ]
    layers = [(name,) for name in adapted + others]
    assert chosen(layers, "attention + feed-forward") == [True] * len(adapted) + [False] * len(others)
    assert chosen(layers, "all linear") == [True] * len(layers)
    attention = [name for name, take in zip(adapted, chosen(layers, "attention"), strict=False) if take]
    assert attention == [name for name in adapted if "attn" in name or "attention" in name or "linear1" in name]
    assert sum(chosen(layers, r".*\.qkv")) == 3
    for wrong in ("(", "nothing like it"):
        with pytest.raises(GeneratorError, match=r"regular expression"):
            chosen(layers, wrong)
