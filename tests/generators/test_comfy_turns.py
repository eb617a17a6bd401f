"""MODEL and VAE of ComfyUI on one device in turns, or block by block, with weights that are NaN while they are away."""

from __future__ import annotations

import hashlib
import importlib

import pytest
import torch
from pretended import PretendedDevice

from dual_process.core.streaming import blocks_of
from dual_process.distillation import Draw, GeneratorError, StopRequested

pytestmark = pytest.mark.comfyui
NAMES = ("flux", "stable_diffusion", "z_image")
DRAW = Draw((0, 1), (4, 5), (1, 2))


@pytest.fixture(scope="module", params=NAMES)
def tiny(request, comfy):
    return importlib.import_module(f"comfy_tinies.{request.param}").TINIES[0]


@pytest.fixture(scope="module")
def models(tiny):
    """MODEL and VAE, which ComfyUI has loaded once, and taken away."""
    import comfy.model_management as management

    model, vae = tiny.build(torch.float32)
    with torch.inference_mode():
        management.load_models_gpu([model, vae.patcher])
        management.unload_all_models()
    return model, vae


@pytest.fixture
def make(tiny, models):
    from dual_process.generators.comfy.generator import ComfyGenerator

    def build(checkpointing=False, offload=False, model=None):
        options = {**tiny.options, "steps": 3, "negative": tiny.conditioning(1)}
        positive = [tiny.conditioning(0), tiny.conditioning(1)]
        generator = ComfyGenerator(
            model or models[0],
            models[1],
            positive,
            latent={"samples": torch.zeros(tiny.latent)},
            gradient_checkpointing=checkpointing,
            offload=offload,
            **options,
        )
        generator.add_lora(2, 4.0, seed=0)
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in generator.lora_parameters().items():
                if name.endswith("lora_B"):
                    parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
        return generator

    return build


def pretend(generator, monkeypatch):
    """Our tensors over the models' memory are NaN while they are away; the models' own are left alone."""
    network, decoder = generator.model.model, generator.vae.first_stage_model
    with torch.inference_mode(False), generator._visits.in_force():
        blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(network))}
        return PretendedDevice({"network": [network], "decoder": [decoder], **blocks}, monkeypatch)


def state(model, vae):
    """Everything of the models that training might change."""
    found = {}
    for kind, whole in (("model", model.model), ("vae", vae.first_stage_model)):
        for name, module in whole.named_modules():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None:
                        digest = hashlib.sha256(
                            tensor.detach().flatten().contiguous().view(torch.uint8).numpy()
                        ).hexdigest()
                        found[kind, name, key] = digest, type(tensor), tensor.requires_grad, tensor.is_inference()
            plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
            found[kind, name] = sorted(plain), repr(plain.get("forward")), plain.get("comfy_cast_weights")
    patcher = [sorted(p.backup) + sorted(p.object_patches_backup) for p in (model, vae.patcher)]
    return found, patcher, model.model.current_patcher


def functional(estimate):
    weights = torch.randn(estimate.image.shape, generator=torch.Generator().manual_seed(9))
    return (estimate.image * weights).mean() + estimate.prediction.square().mean()


def gradients(generator):
    return {name: p.grad.clone() for name, p in generator.lora_parameters().items() if p.grad is not None}


def resident(generator, needs=("image", "prediction")):
    with generator.training():
        functional(generator.estimate(DRAW, needs)).backward()
        pictures = generator.sample([0], [4])
    return gradients(generator), pictures


def assert_same(ours, theirs, exact=True):
    assert ours.keys() == theirs.keys()
    assert theirs
    size = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        bound = 0.0 if exact else 1e-5
        torch.testing.assert_close(ours[name], gradient, rtol=bound, atol=bound * size, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_turns_the_gradients_are_those_of_both_resident(make, checkpointing, monkeypatch):
    wanted, _ = resident(make(checkpointing))
    generator = make(checkpointing)
    device = pretend(generator, monkeypatch)
    with generator.training(in_turns=True):
        functional(generator.estimate(DRAW, {"image", "prediction", "base_image"})).backward()
    assert device.parts() == ["network", "decoder", "network"]
    assert device.is_empty()
    assert_same(gradients(generator), wanted)


def test_a_graph_waits_while_others_have_their_turn(make, models, monkeypatch):
    before = state(*models)
    wanted, _ = resident(make(True))
    generator = make(True)
    assert generator.keeps_graph
    assert not make(False).keeps_graph
    device = pretend(generator, monkeypatch)
    forwards = []
    handle = models[0].model.diffusion_model.register_forward_hook(lambda *_: forwards.append(1))
    with generator.training(in_turns=True):
        estimate = generator.estimate(DRAW)
    assert device.is_empty()
    made = len(forwards)
    with generator.training(in_turns=True):
        functional(estimate).backward()
    handle.remove()
    assert len(forwards) == made  # nothing but the blocks and the decoder is computed again
    assert device.parts() == ["network", "decoder", "network"]
    assert device.is_empty()
    assert_same(gradients(generator), wanted)
    assert state(*models) == before


@pytest.mark.parametrize("in_turns", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_come_one_by_one(make, models, checkpointing, in_turns, monkeypatch):
    before = state(*models)
    wanted, pictures = resident(make(checkpointing))
    generator = make(checkpointing, "blocks")
    device = pretend(generator, monkeypatch)
    for _ in range(2):  # the second time the blocks are fetched ahead
        for parameter in generator.lora_parameters().values():
            parameter.grad = None
        with generator.training(in_turns):
            functional(generator.estimate(DRAW)).backward()
            assert torch.equal(generator.sample([0], [4]), pictures)
    assert torch.equal(generator.sample([0], [4]), pictures)
    assert device.is_empty()
    assert_same(gradients(generator), wanted, exact=False)
    blocks = {name for name in device.came() if name.startswith("block")}
    assert len(blocks) == len(generator._visits.blocks) > 3
    assert device.most_blocks == 2  # the one that works, and the next
    assert state(*models) == before


def test_what_comes_as_a_whole(make, monkeypatch):
    wanted, pictures = resident(make(True))
    generator = make(True, True)
    device = pretend(generator, monkeypatch)
    with generator.training():
        functional(generator.estimate(DRAW)).backward()
        assert torch.equal(generator.sample([0], [4]), pictures)
    assert device.is_empty()
    assert_same(gradients(generator), wanted)


def test_other_words_are_refused(make):
    with pytest.raises(GeneratorError, match="offload as True, False or 'blocks', got 'layers'"):
        make(offload="layers")


def test_comfyui_has_nothing_of_it_on_the_device(make, models):
    import comfy.model_management as management

    make().sample([0], [1])
    assert models[0].model in [p.model for p in management.loaded_models()]
    generator = make(True, "blocks")
    with generator.training():
        assert management.loaded_models() == []
        generator.estimate(DRAW)
    assert management.loaded_models() == []


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_an_error_in_mid_step_leaves_everything_as_before(make, models, monkeypatch, at):
    import comfy.model_management as management

    before = state(*models)
    wanted, _ = resident(make(True))
    generator = make(True, "blocks")
    device = pretend(generator, monkeypatch)
    layer = next(iter(generator._layers.values()))
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > (0 if at == "forward" else made[0]):
            raise management.InterruptProcessingException

    made = [0]
    if at == "backward":
        counting = layer.register_forward_pre_hook(lambda *_: calls.append(1))
        with generator.training(in_turns=True):
            generator.estimate(DRAW)
        counting.remove()
        made, calls = [len(calls)], []
    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(StopRequested), generator.training(in_turns=True):
        functional(generator.estimate(DRAW)).backward()
    handle.remove()
    assert device.is_empty()
    assert state(*models) == before
    assert management.in_training is False
    for parameter in generator.lora_parameters().values():
        parameter.grad = None
    with generator.training(in_turns=True):
        functional(generator.estimate(DRAW)).backward()
    assert_same(gradients(generator), wanted, exact=False)


@pytest.mark.parametrize("bypass", [False, True])
def test_a_lora_of_the_user_is_in_force(make, models, monkeypatch, bypass):
    import comfy.model_management as management
    import comfy_extras.nodes_train

    lora = make().lora_state_dict("comfyui")
    with torch.inference_mode():
        theirs = comfy_extras.nodes_train.LoraModelLoader.execute(models[0], lora, 1.0, bypass).result[0]
    merged, pictures = resident(make(True, model=theirs))
    _, others = resident(make(True))
    with torch.inference_mode():
        management.unload_all_models()
    before = state(*models)  # with the trace that ComfyUI leaves of a bypass
    assert float((pictures - others).abs().max()) > 1e-3
    generator = make(True, "blocks", model=theirs)
    device = pretend(generator, monkeypatch)
    with generator.training(in_turns=True):
        functional(generator.estimate(DRAW)).backward()
        torch.testing.assert_close(generator.sample([0], [4]), pictures, rtol=1e-6, atol=1e-6)
    assert device.is_empty()
    assert_same(gradients(generator), merged, exact=False)
    assert state(*models) == before
