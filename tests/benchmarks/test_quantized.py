"""The stand-ins weigh what bitsandbytes' own layers weigh, and keep nothing else."""

from __future__ import annotations

import pytest
import torch
from ledger import without_numbers
from quantized import QuantizedLinear
from torch import nn

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
