"""The stand-ins weigh what bitsandbytes' own layers weigh, and keep nothing else."""

from __future__ import annotations

import pytest
import torch
from full_size_models import GeneratorModels
from full_size_plans import Part
from full_size_step import build_generator
from ledger import without_numbers
from pipelines.flux_2 import build_transformer, build_vae
from quantized import QuantizedLinear
from tiny_flux import WIDTH
from torch import nn

from dual_process.core.protocols import Draw
from dual_process.generators.architectures.flux_2 import FLUX_2_KLEIN

bnb = pytest.importorskip("bitsandbytes")
IN, OUT, ROWS = 256, 512, 64


def bytes_of_theirs(bits):
    if bits == 8:
        weight = bnb.nn.Linear8bitLt(IN, OUT, bias=False, has_fp16_weights=False).to("cpu").weight
        return weight.nbytes + weight.SCB.nbytes
    weight = bnb.nn.Linear4bit(IN, OUT, bias=False, quant_type="nf4", compress_statistics=False).to("cpu").weight
    return weight.nbytes + weight.quant_state.absmax.nbytes


@pytest.mark.parametrize("bits", [8, 4])
def test_weighs_as_much(bits):
    layer = QuantizedLinear(nn.Linear(IN, OUT, bias=False), bits)
    assert layer.weight.nbytes + layer.scale.nbytes == bytes_of_theirs(bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_widened_weights_are_dropped(bits):
    wide = IN * OUT * 2
    with without_numbers() as ledger:
        layer = QuantizedLinear(nn.Linear(IN, OUT, bias=False, dtype=torch.bfloat16), bits)
        x = torch.empty(ROWS, IN, dtype=torch.bfloat16, requires_grad=True)
        ledger.reset()
        before = ledger.now[0]
        y = layer(x)
        assert ledger.now[0] - before == y.nbytes
        assert ledger.peak - before == y.nbytes + wide
        ledger.reset()
        grad = torch.ones_like(y)
        before = ledger.now[0]
        y.backward(grad)
        assert ledger.now[0] - before == x.nbytes
        assert ledger.peak - before == x.nbytes + wide
        assert sum(ledger.flops.values()) == 2 * ROWS * IN * OUT


def test_the_network_computes_in_its_own_dtype():
    """Though the first weights in floating point may be those of the LoRA, in float32."""
    models = GeneratorModels(FLUX_2_KLEIN, lambda: build_transformer(False), build_vae, {"sequence": (1, 4, 3 * WIDTH)})
    generator = build_generator(models, 64, Part("4bit"), torch.bfloat16)
    generator.add_lora(2, 4.0, seed=0)
    assert next(p for p in generator.network.parameters() if p.is_floating_point()).dtype == torch.float32
    seen = []
    for block in generator.network.transformer_blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["hidden_states"].dtype), with_kwargs=True
        )
    with generator.training():
        generator.estimate(Draw((0,), (1,), (0,)), {"prediction"})
    assert seen == [torch.bfloat16]
