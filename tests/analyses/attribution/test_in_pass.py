"""The ledger closes with sink logits and with moved neurons; attention is read as the model computes it."""

from __future__ import annotations

import pytest
import torch

import tiny
from analyses.attribution.explained import decoder, encoder
from regtune.analyses.attention.tap import attention_tap
from regtune.analyses.attribution import rules
from regtune.analyses.attribution.attribute import attribute
from regtune.config import RegisterConfig
from regtune.registers.moved_neurons import Neuron, RegisterNeurons, move_neurons
from regtune.registers.sinks import add_sink_logits, sinks_in
from regtune.registers.surgery import add_registers

NEURONS = [Neuron(layer=layer, index=index, sign=1, held=0.7) for layer, index in ((0, 3), (1, 9), (1, 20))]
ANYTHING = {"tolerance": float("inf")}


def with_sinks(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for sinks in sinks_in(add_sink_logits(model)):
            sinks.logits.copy_(torch.randn(4, generator=generator, dtype=torch.float64))
    return model


def with_neurons(model, number=2):
    if number:
        add_registers(model, RegisterConfig(num_registers=number, init_std=0.5))
    move_neurons(model, NEURONS)
    return model


def made(family, change):
    model = decoder(family) if family in ("llama", "gpt2") else encoder(family)
    model = model if change == "sinks" else with_neurons(model)
    return model if change == "neurons" else with_sinks(model)


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("change", ["sinks", "neurons", "both"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_ledger_closes(family, change, method):
    model, batch = made(family, change), tiny.inputs(family, pad=4)
    for one in attribute(model, batch, method=method):
        assert abs(one.residual) <= 1e-8
        assert abs(one.value - one.total) <= 1e-8


def test_a_sinks_share_is_a_bias_and_left_out_the_ledger_stays_open(monkeypatch):
    model, batch = made("bert", "sinks"), tiny.inputs("bert", pad=4)
    booked = attribute(model, batch)[0].biases
    monkeypatch.setattr(rules.AttnLRP, "constant", lambda *_: None)
    (one, *_) = attribute(model, batch, **ANYTHING)
    assert abs(one.residual) > 1e-4
    assert booked - one.biases == pytest.approx(one.residual, abs=1e-9)


def test_what_a_decoders_registers_hold_is_theirs_and_left_out_the_ledger_stays_open(monkeypatch):
    model, batch = made("llama", "neurons"), tiny.inputs("llama")
    (one, *_) = attribute(model, batch)
    assert len(one.registers) == 2
    monkeypatch.setattr(RegisterNeurons, "__call__", RegisterNeurons.forward, raising=False)
    (other, *_) = attribute(model, batch, **ANYTHING)
    assert abs(other.residual) > 1e-4
    assert sum(one.registers) - sum(other.registers) == pytest.approx(other.residual, abs=1e-9)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_chefer_keeps_its_sum_and_its_forward_pass(attention):
    model, batch = with_sinks(encoder("bert", attention=attention)), tiny.inputs("bert", pad=4)
    for one in attribute(model, batch, method="chefer"):
        assert abs(one.residual) < 1e-8


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_tap_reads_what_sinks_leave(family):
    model, batch, found = made(family, "both"), tiny.inputs(family), []
    with torch.no_grad():
        plain = model(**batch)[0]
        with attention_tap(model, lambda _layer, weights, *_: found.append(weights)):
            assert torch.allclose(model(**batch)[0], plain, atol=1e-9)
        model.set_attn_implementation("eager")
        maps = model(**batch, output_attentions=True).attentions
    for tapped, own in zip(found, maps, strict=True):
        assert torch.allclose(tapped, own, atol=1e-6)
        assert float(tapped.sum(-1).max()) < 1
