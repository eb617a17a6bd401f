"""MODELs of packed weights in ComfyUI: its own formats, linear layers of other packs, and bitsandbytes' layers.

Each is held against the same MODEL with the numbers that its weights stand for.
"""

from __future__ import annotations

import json

import pytest
import torch
from comfy_models import SIZE, conditionings, write_files
from pretended import PretendedDevice
from torch.nn import functional as F

from dual_process.core.streaming import blocks_of
from dual_process.distillation import Draw

pytestmark = pytest.mark.comfyui
EMPTY = {"samples": torch.zeros(1, 16, SIZE // 8, SIZE // 8)}
DRAW = Draw((0,), (5,), (0,))
BLOCK = 32  # numbers to a scale


@pytest.fixture(scope="module")
def models(comfy):
    """MODEL and VAE, loaded as nodes do."""
    unet, _ = write_files(comfy / "models", "schnell")
    import nodes

    with torch.inference_mode():
        return nodes.UNETLoader().load_unet(unet.name, "default")[0], nodes.VAELoader().load_vae(
            "tiny-vae.safetensors"
        )[0]


@pytest.fixture
def state(models):
    return {name: tensor.clone() for name, tensor in models[0].model.diffusion_model.state_dict().items()}


def is_packed(name, tensor):
    return name.endswith(".weight") and tensor.ndim == 2 and "_blocks." in name


def load(state, **options):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)


def trained(model, vae, **changes):
    """A generator whose LoRA is random, as after training."""
    from dual_process.generators.comfy.generator import ComfyGenerator

    generator = ComfyGenerator(model, vae, conditionings(), latent=EMPTY, **changes)
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
    return prediction.detach(), torch.cat([p.grad.flatten() for p in generator.lora_parameters().values()])


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def snapshot(model):
    """Every parameter and buffer of a MODEL, as objects and as bytes, and who computes each layer."""
    network = model.model.diffusion_model
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.inference_mode():
        found = {
            name: (id(t), type(t), t.requires_grad, getattr(t, "_qdata", t).clone().view(torch.uint8).tolist())
            for name, t in tensors.items()
        }
    return found, [sorted(vars(part)) for part in network.modules()]


def bytes_of(model):
    return {name: found[1:] for name, found in snapshot(model)[0].items()}


def check(model, plain, vae, bound, whole=None):
    """It trains as its numbers, checkpointed too, and comes back as it was; how far they are from `whole` is said."""
    trained(model, vae).sample([0], [1])  # has loaded it, as the first run does
    before, wanted = snapshot(model), learn(trained(plain, vae))
    for checkpointing in (False, True):
        found = learn(trained(model, vae, gradient_checkpointing=checkpointing))
        assert relative(found[0], wanted[0]) <= bound
        assert relative(found[1], wanted[1]) <= bound
    assert snapshot(model) == before
    ours, theirs = trained(model, vae), trained(plain, vae)
    assert {n: p.shape for n, p in ours.lora_parameters().items()} == {
        n: p.shape for n, p in theirs.lora_parameters().items()
    }
    assert ours.info.weights_sha256 != theirs.info.weights_sha256
    assert ours.info.weights_sha256 == trained(model, vae).info.weights_sha256
    if whole is not None:
        wanted = learn(trained(whole, vae))
        turned = 1 - float(F.cosine_similarity(found[1], wanted[1], dim=0))
        print(f"the prediction moves by {relative(found[0], wanted[0]):.4f}, the gradient turns by {turned:.4f}")
        assert 0 < turned < 0.2


# ComfyUI's own formats


def scales_of(format, params):
    if format == "nvfp4":
        return {"weight_scale": params.block_scale.view(torch.uint8), "weight_scale_2": params.scale}
    return {"weight_scale": params.scale.view(torch.uint8) if format == "mxfp8" else params.scale}


def stored_in(format, state):
    """A state dict as ComfyUI's files of this format hold it, and the numbers that it stands for."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    config = torch.tensor(list(json.dumps({"format": format}).encode()), dtype=torch.uint8)
    stored, plain = dict(state), dict(state)
    for name, weight in state.items():
        if is_packed(name, weight):
            packed = QuantizedTensor.from_float(weight, QUANT_ALGOS[format]["comfy_tensor_layout"])
            stored[name], layer = packed._qdata, name.removesuffix("weight")
            stored |= {f"{layer}{key}": scale for key, scale in scales_of(format, packed._params).items()}
            stored[f"{layer}comfy_quant"] = config.clone()
            plain[name] = packed.dequantize()
    return stored, plain


@pytest.mark.parametrize(("format", "bound"), [("int8_tensorwise", 0.05), ("mxfp8", 1e-4), ("nvfp4", 1e-4)])
def test_comfyuis_own_formats(models, state, format, bound):
    from comfy.quant_ops import QuantizedTensor

    stored, plain = stored_in(format, state)
    model = load(stored)
    assert sum(isinstance(p.data, QuantizedTensor) for p in model.model.parameters()) > 8
    check(model, load(plain), models[1], bound, load(state))


@pytest.mark.parametrize("format", ["int8_tensorwise", "mxfp8", "nvfp4"])
def test_comfyuis_own_formats_come_and_go(models, state, format, monkeypatch):
    model, vae = load(stored_in(format, state)[0]), models[1]
    trained(model, vae).sample([0], [1])
    before, wanted = bytes_of(model), learn(trained(model, vae, gradient_checkpointing=True))
    generator = trained(model, vae, gradient_checkpointing=True, offload="blocks")
    with torch.inference_mode(False), generator._visits.in_force():
        blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(generator.model.model))}
        device = PretendedDevice({"rest": [generator.model.model], **blocks}, monkeypatch)
    for ours, theirs in zip(learn(generator), wanted, strict=True):
        assert relative(ours, theirs) <= 1e-5
    assert device.is_empty()
    assert len({name for name in device.came() if name.startswith("block")}) > 2
    assert bytes_of(model) == before  # in new objects, as ComfyUI makes them where it unloads such a model


# Layers of other packs, whose forward unpacks the weight


class Packed(torch.Tensor):
    """Bytes that stand for a matrix of another shape, which it says is its own."""

    @staticmethod
    def __new__(cls, data, logical):
        return torch.Tensor._make_subclass(cls, data)

    def __init__(self, data, logical):
        self.logical = torch.Size(logical)

    @property
    def shape(self):
        return getattr(self, "logical", self.size())

    def to(self, *args, **kwargs):
        return Packed(self.as_subclass(torch.Tensor).to(*args, **kwargs), self.shape)

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self


def pack(weight):
    """[out, in] as rows of a float16 scale and BLOCK int8 numbers."""
    rows = weight.reshape(-1, BLOCK).float()
    scale = (rows.abs().amax(dim=1, keepdim=True) / 127).half()
    numbers = (rows / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return Packed(torch.cat([scale.view(torch.int8), numbers], dim=1).view(torch.uint8), weight.shape)


def unpack(packed, dtype):
    rows = packed.as_subclass(torch.Tensor).view(torch.int8)
    scale = rows[:, :2].contiguous().view(torch.float16)
    return (rows[:, 2:].to(dtype) * scale.to(dtype)).reshape(packed.shape)


def operations():
    import comfy.ops

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
                torch.nn.Module.__init__(self)
                self.in_features, self.out_features = in_features, out_features
                self.weight = self.bias = None

            def _load_from_state_dict(self, state_dict, prefix, *_):
                for name in ("weight", "bias"):
                    if (tensor := state_dict.get(prefix + name)) is not None:
                        setattr(self, name, torch.nn.Parameter(tensor, requires_grad=False))

            def forward(self, input, *args, **kwargs):
                weight = unpack(self.weight, input.dtype) if isinstance(self.weight, Packed) else self.weight
                return F.linear(input, weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))

    return Operations


def test_layers_that_unpack_their_weight(models, state):
    with torch.inference_mode():  # as in a loader's node
        stored = {name: pack(t) if is_packed(name, t) else t for name, t in state.items()}
        plain = {name: unpack(t, torch.float32) if isinstance(t, Packed) else t for name, t in stored.items()}
    model = load(stored, custom_operations=operations())
    assert sum(isinstance(p, Packed) for p in model.model.parameters()) > 8
    check(model, load(plain), models[1], 1e-5, load(state))
    assert all(p.is_inference() for p in model.model.parameters() if isinstance(p, Packed))


def test_layers_that_unpack_their_weight_stay_on_the_device(models, state, caplog):
    with torch.inference_mode():
        model = load({n: pack(t) if is_packed(n, t) else t for n, t in state.items()}, custom_operations=operations())
    wanted = learn(trained(model, models[1]))
    found = learn(trained(model, models[1], offload="blocks"))
    assert "in a format that cannot be streamed, Packed" in caplog.text
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


# bitsandbytes' layers in place of ComfyUI's


def replaced(model, bits):
    bnb = pytest.importorskip("bitsandbytes")
    network = model.model.diffusion_model
    for name in [n for n, part in network.named_modules() if "_blocks." in n and isinstance(part, torch.nn.Linear)]:
        old, (parent, _, child) = network.get_submodule(name), name.rpartition(".")
        features = old.in_features, old.out_features, old.bias is not None
        if bits == "4bit":
            new = bnb.nn.Linear4bit(*features, compute_dtype=torch.float32, quant_type="nf4")
        else:
            new = bnb.nn.Linear8bitLt(*features, has_fp16_weights=False, threshold=6.0)
        new.load_state_dict(old.state_dict())
        setattr(network.get_submodule(parent), child, new.to("cpu").requires_grad_(False))
    return model


@pytest.mark.parametrize(("bits", "bound"), [("4bit", 1e-4), ("8bit", 0.1)])
@pytest.mark.parametrize("inference", [False, True])
def test_layers_of_bitsandbytes(models, state, bits, bound, inference):
    from dual_process.core.errors import GeneratorError
    from dual_process.core.quantization import taken_over

    with torch.inference_mode(inference):
        model = replaced(load(state), bits)
        plain = load(state)
        for name, layer in model.model.diffusion_model.named_modules():
            if hasattr(layer, "weight") and type(layer).__module__.startswith("bitsandbytes"):
                plain.model.diffusion_model.get_submodule(name).weight.data.copy_(
                    taken_over(layer, GeneratorError).values(torch.float32)
                )
    check(model, plain, models[1], bound, load(state))
