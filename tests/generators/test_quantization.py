"""Networks of 8 and 4 bits a weight: their gradients are those of the numbers that the weights stand for."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import flux, stable_diffusion_xl, z_image
from pretended import PretendedDevice
from safetensors.torch import load_file, save_file
from tiny_flux import PROMPTS
from torch import nn
from torch.nn import functional as F

from dual_process.core.errors import GeneratorError
from dual_process.core.protocols import Draw
from dual_process.core.quantization import KINDS, QuantizedLinear
from dual_process.core.streaming import blocks_of
from dual_process.generators import load_generator
from dual_process.generators.diffusers.denoising import decoding_parts

bnb = pytest.importorskip("bitsandbytes")
DRAW = Draw((0, 1), (4, 5), (0, 0))
WIDE = {  # a row of weights is at least one of bitsandbytes' blocks
    "flux": lambda: flux.build("schnell", wider=2),
    "sdxl": lambda: stable_diffusion_xl.build(widths=(64, 128)),
    "z-image": lambda: z_image.build(heads=4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, build in WIDE.items():
        found[name] = str(tmp_path_factory.mktemp("wide") / name)
        build().save_pretrained(found[name])
    return found


@pytest.fixture(params=WIDE)
def name(request):
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(folders):
    def build(name="flux", quantization=None, lora=True, source=None, **options):
        size = 32 if name == "sdxl" else 64  # pixels
        options = {"height": size, "width": size, "num_inference_steps": 3, "quantization": quantization, **options}
        generator = load_generator(source or folders[name], PROMPTS, "cpu", **options)
        if lora:
            generator.add_lora(2, 4.0, seed=0)
            random = torch.Generator().manual_seed(5)
            with torch.no_grad():
                for key, parameter in generator.lora_parameters().items():
                    if key.endswith("lora_B"):
                        parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.02)
        return generator

    return build


def quantized(network):
    """The quantised layers of a network by their names without PEFT."""
    return {
        name.replace(".base_layer", ""): layer
        for name, layer in network.named_modules()
        if isinstance(layer, QuantizedLinear)
    }


@torch.no_grad()
def fill_in(plain, layers):
    """Gives a network of whole numbers those that the layers' weights stand for."""
    inside = {name.replace(".base_layer", ""): part for name, part in plain.named_modules() if type(part) is nn.Linear}
    for name, layer in layers.items():
        inside[name].weight.copy_(layer.values(torch.float32))


def learn(generator, in_turns=False):
    """The prediction at one point, and the gradient of a fixed functional of it and of the picture."""
    with generator.training(in_turns):
        estimate = generator.estimate(DRAW)
        random = torch.Generator().manual_seed(9)
        value = (estimate.prediction * torch.randn(estimate.prediction.shape, generator=random)).mean()
        (value + (estimate.image * torch.randn(estimate.image.shape, generator=random)).mean()).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in generator.lora_parameters().items()}
    return estimate.prediction.detach(), torch.cat([gradients[n].flatten() for n in sorted(gradients)])


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def turned(ours, theirs):
    return 1 - float(F.cosine_similarity(ours, theirs, dim=0))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_numbers(make, name, kind, checkpointing):
    """In 8 bits the inputs of each layer are rounded as well, so that the network is at another point."""
    generator, plain = make(name, kind, gradient_checkpointing=checkpointing), make(name)
    fill_in(plain.network, quantized(generator.network))
    ours, theirs = learn(generator), learn(plain)
    bound = 0.08 if kind == "8bit" else 1e-4
    assert relative(ours[0], theirs[0]) <= bound
    assert relative(ours[1], theirs[1]) <= (0.2 if kind == "8bit" else 1e-4)


@pytest.mark.parametrize(("kind", "off", "turn"), [("8bit", 0.08, 0.02), ("fp8", 0.06, 0.02), ("4bit", 0.2, 0.12)])
def test_the_error_against_whole_numbers(make, name, kind, off, turn):
    ours, theirs = learn(make(name, kind)), learn(make(name))
    moved, turned_by = relative(ours[0], theirs[0]), turned(ours[1], theirs[1])
    print(f"{name} in {kind}: the prediction moves by {moved:.4f}, the gradient turns by {turned_by:.4f}")
    assert 0 < moved < off
    assert 0 < turned_by < turn


def test_the_numbers_are_bitsandbytes(make):
    weights = {key: part.weight for key, part in make(lora=False).network.named_modules() if type(part) is nn.Linear}
    four, eight = (quantized(make("flux", kind, lora=False).network) for kind in ("4bit", "8bit"))
    assert set(four) == set(eight) == set(weights)
    for key, weight in weights.items():
        theirs = bnb.nn.Params4bit(weight.detach().clone(), quant_type="nf4", compress_statistics=False).to("cpu")
        assert torch.equal(four[key].weight, theirs.data)
        assert torch.equal(four[key].scales, theirs.quant_state.absmax)
        theirs = bnb.nn.Int8Params(weight.detach().clone(), requires_grad=False).to("cpu")
        assert torch.equal(eight[key].weight, theirs.data)
        assert torch.equal(eight[key].scales, theirs.SCB)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_layers_multiply_as_bitsandbytes(kind, dtype, bound):
    """fp8: as torch's own cast."""
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[..., 5] *= 8  # above LLM.int8's threshold
    layer = KINDS[kind](*KINDS[kind].pack(weight), None, (96, 128), dtype).eval()
    if kind == "4bit":
        theirs = bnb.nn.Linear4bit(
            128, 96, bias=False, compute_dtype=dtype, compress_statistics=False, quant_type="nf4"
        )
    elif kind == "8bit":
        theirs = bnb.nn.Linear8bitLt(128, 96, bias=False, has_fp16_weights=False, threshold=6.0)
    else:
        theirs = nn.Linear(128, 96, bias=False, dtype=dtype)
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 448
        weight = ((weight.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(dtype)
    theirs.load_state_dict({"weight": weight})
    theirs = theirs.to("cpu").eval()
    gradients = []
    for product in (layer, theirs):
        leaf = x.clone().requires_grad_()
        output = product(leaf)
        (output.float() ** 2).sum().backward()
        gradients.append((output.detach().float(), leaf.grad.float()))
    for ours, wanted in zip(*gradients, strict=True):
        assert relative(ours, wanted) <= bound


def test_autograd_keeps_nothing_of_a_layer(kind):
    layer = KINDS[kind](*KINDS[kind].pack(torch.randn(64, 64)), None, (64, 64), None)
    x = torch.randn(2, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = layer(x)
    assert kept == []
    layer.scales.data = torch.zeros_like(layer.scales)  # the backward pass takes what is there then
    output.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize(("in_turns", "checkpointing"), [(True, True), (False, False)])
@pytest.mark.parametrize(("name", "kind"), [*(("flux", kind) for kind in KINDS), ("sdxl", "4bit"), ("z-image", "8bit")])
def test_they_come_and_go_as_others_do(make, name, kind, in_turns, checkpointing, monkeypatch):
    wanted = learn(make(name, kind, gradient_checkpointing=checkpointing))
    pictures = make(name, kind).sample([0], [4])
    generator = make(name, kind, offload="blocks", gradient_checkpointing=checkpointing)
    blocks = {f"block {i}": [block] for i, block in enumerate(blocks_of(generator.network))}
    parts = {"network": [generator.network], "decoder": decoding_parts(generator.vae), **blocks}
    device = PretendedDevice(parts, monkeypatch, generator.lora_parameters().values())
    assert all(layer.scales.isnan().all() for layer in quantized(generator.network).values())
    for ours, theirs in zip(learn(generator, in_turns), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    assert torch.equal(generator.sample([0], [4]), pictures)
    assert device.is_empty()
    assert 1 <= device.most_blocks <= 2


def test_what_it_says_of_itself(make, kind):
    generator, plain = make("flux", kind), make("flux")
    assert generator.info.dtype == f"{kind}, float32"
    assert generator.info.weights_sha256 != plain.info.weights_sha256
    assert generator.info.weights_sha256 == make("flux", kind, dtype=torch.float32).info.weights_sha256

    def size(module):
        return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))

    for part in (generator, plain):
        part.remove_lora()
    assert size(generator.network) < {"8bit": 0.32, "fp8": 0.32, "4bit": 0.22}[kind] * size(plain.network)
    assert size(generator.vae) == size(plain.vae)


def test_the_lora_goes_from_one_to_the_other(make, kind):
    generator, plain = make("flux", kind), make("flux", lora=False)
    state = generator.lora_state_dict()
    plain.load_lora_state_dict(state)
    assert {key: tuple(t.shape) for key, t in plain.lora_state_dict().items()} == {
        key: tuple(t.shape) for key, t in state.items()
    }
    generator.load_lora_state_dict(plain.lora_state_dict())
    assert all(torch.equal(t, state[key]) for key, t in generator.lora_state_dict().items())


# Networks that are quantised already


@torch.no_grad()
def with_bitsandbytes(network, bits, **options):
    """bitsandbytes' own layers in place of the linear ones, as diffusers makes them on a GPU."""
    for key in [key for key, part in network.named_modules() if type(part) is nn.Linear]:
        old, (parent, _, child) = network.get_submodule(key), key.rpartition(".")
        features = old.in_features, old.out_features, old.bias is not None
        if bits == "4bit":
            new = bnb.nn.Linear4bit(*features, compute_dtype=torch.float32, quant_type="nf4", **options)
        else:
            new = bnb.nn.Linear8bitLt(*features, has_fp16_weights=False, threshold=6.0)
        new.load_state_dict(old.state_dict())
        setattr(network.get_submodule(parent), child, new.to("cpu").requires_grad_(False))
    return network.eval()


CONFIGS = {
    "4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
STORED = [("8bit", {}), ("4bit", {}), ("4bit", {"compress_statistics": False})]


@pytest.mark.parametrize(("bits", "options"), STORED)
def test_a_pipeline_in_memory_shares_its_packed_weights(make, folders, bits, options):
    pipeline = DiffusionPipeline.from_pretrained(folders["flux"], local_files_only=True)
    theirs = with_bitsandbytes(pipeline.transformer, bits, **options)
    layers = {key: (id(part), id(part.weight)) for key, part in theirs.named_modules() if hasattr(part, "weight")}
    generator, plain = make(source=pipeline), make()
    ours = quantized(generator.network)
    assert len(ours) > 20
    for key, layer in ours.items():
        assert layer.weight.data_ptr() == theirs.get_submodule(key).weight.data_ptr()
        assert layer.bias is theirs.get_submodule(key).bias
    fill_in(plain.network, ours)
    found, wanted = learn(generator), learn(plain)
    assert relative(found[1], wanted[1]) <= (0.2 if bits == "8bit" else 1e-4)
    assert generator.info.dtype == f"{bits}, float32"
    after = {key: (id(part), id(part.weight)) for key, part in theirs.named_modules() if hasattr(part, "weight")}
    assert after == layers


def test_nested_scales_are_those_of_bitsandbytes(folders):
    from dual_process.core.quantization import taken_over

    pipeline = DiffusionPipeline.from_pretrained(folders["flux"], local_files_only=True)
    layer = with_bitsandbytes(pipeline.transformer, "4bit").transformer_blocks[0].attn.to_q
    assert layer.weight.quant_state.nested
    theirs = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(taken_over(layer, GeneratorError).values(torch.float32), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_quantised_folder_loads_as_it_is(make, folders, bits, offload, tmp_path, monkeypatch):
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer

    folder = stored(folders["flux"], bits, tmp_path)
    for quantizer in (BnB4BitDiffusersQuantizer, BnB8BitDiffusersQuantizer):  # which asks for a GPU
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
    generator, plain = make(source=folder, offload=offload), make()
    assert generator.info.dtype == f"{bits}, float32"
    fill_in(plain.network, quantized(generator.network))
    assert relative(learn(generator)[1], learn(plain)[1]) <= (0.2 if bits == "8bit" else 1e-4)
    with pytest.raises(GeneratorError, match=f"is stored in {bits} already"):
        make(source=folder, quantization="fp8")


def stored(source, bits, folder):
    pipeline = DiffusionPipeline.from_pretrained(source, local_files_only=True)
    pipeline.save_pretrained(folder)
    where = folder / "transformer"
    state = with_bitsandbytes(pipeline.transformer, bits).state_dict()
    (file,) = where.glob("*.safetensors")
    assert load_file(file).keys() <= state.keys()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file, {"format": "pt"})
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[bits]}))
    return str(folder)


# What is refused


def test_a_word_that_is_none(make):
    with pytest.raises(GeneratorError, match="quantization None, '8bit', '4bit' or 'fp8', got '3bit'"):
        make(quantization="3bit")


def test_without_bitsandbytes(make, monkeypatch):
    monkeypatch.setattr("dual_process.core.quantization.find_spec", lambda _: None)
    with pytest.raises(GeneratorError, match="'4bit' needs bitsandbytes: pip install bitsandbytes"):
        make(quantization="4bit")
    assert make(quantization="fp8").info.dtype == "fp8, float32"


def test_a_pipeline_in_memory_is_not_quantised(make, folders):
    pipeline = DiffusionPipeline.from_pretrained(folders["flux"], local_files_only=True)
    with pytest.raises(GeneratorError, match=r"a pipeline in memory is taken as it is\. Give its folder"):
        make(source=pipeline, quantization="4bit")


def test_weights_packed_for_the_cpu(make, folders):
    pipeline = DiffusionPipeline.from_pretrained(folders["flux"], local_files_only=True)
    layer = with_bitsandbytes(pipeline.transformer, "4bit").transformer_blocks[0].attn.to_q
    layer.weight.quant_state.packing_format_for_cpu = True  # as after a run on some CPUs
    with pytest.raises(GeneratorError, match=r"packs them anew\. Load the model again"):
        make(source=pipeline)


def test_other_libraries_weights(make, folders, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(folders["flux"], local_files_only=True)
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "config.json"
    other = {"quant_method": "torchao", "quant_type": "int8wo"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": other}))
    with pytest.raises(GeneratorError, match="got one by 'torchao'"):
        make(source=str(tmp_path))
    pipeline.transformer.register_to_config(quantization_config=other)
    with pytest.raises(GeneratorError, match="got one by 'torchao'"):
        make(source=pipeline)
