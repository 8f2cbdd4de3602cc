"""The ledger closes for decoders, with and without registers."""

from __future__ import annotations

import pytest

import tiny
from analyses.attribution.explained import lively
from regtune.analyses.attribution.attribute import attribute
from regtune.config import RegisterConfig
from regtune.errors import UnsupportedModelError
from regtune.registers.surgery import add_registers

FAMILIES = sorted(set(tiny.DECODERS) - {"gemma2"})


def made(family, attention, registers):
    model = lively(tiny.tiny_model(family, "causal-lm", attention))
    return add_registers(model, RegisterConfig(num_registers=registers, init_std=0.5)).eval()


@pytest.mark.grid
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
def test_the_ledger_of_the_next_token_closes(family, attention, registers, method):
    for one in attribute(made(family, attention, registers), tiny.inputs(family, pad=4), method=method):
        assert abs(one.value - one.total) < 1e-8
        assert abs(one.residual) < 1e-8
        assert len(one.registers) == registers
        assert not registers or one.registers.any(), "registers have a share"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_method_that_puts_other_words_in_keeps_the_registers(family):
    for one in attribute(made(family, "sdpa", 4), tiny.inputs(family, pad=4), method="gradient-input"):
        assert len(one.registers) == 4
        assert one.registers.any()


def test_capped_scores_have_no_rules():
    with pytest.raises(UnsupportedModelError, match="no relevance rules for model_type='gemma2'"):
        attribute(made("gemma2", "eager", 0), tiny.inputs("gemma2"), method="attnlrp")
