"""The proofs that relevance propagation is right, for every family, with and without registers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from analyses.attribution.explained import (
    CASES,
    CHEFER,
    DECODERS,
    any_model,
    decoder,
    encoder,
    leave_out,
    shared_model,
    tolerance,
    without_biases,
)
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.lrp import relevance_rules
from regtune.analyses.attribution.rules import AttnLRP, Ledger
from regtune.errors import UnsupportedModelError
from regtune.rows.targets import Answer, StartLogit

ANYTHING = {"tolerance": float("inf")}
EVERY = pytest.mark.parametrize(("family", "registers"), CASES)


def logits_of(output):
    return torch.cat([output[name].flatten() for name in ("start_logits", "end_logits", "logits") if name in output])


@pytest.mark.grid
@EVERY
def test_inside_the_context_the_model_computes_what_it_computed_before(family, registers):
    model, batch = shared_model(family, registers), tiny.inputs(family, pad=4)
    with torch.no_grad():
        before = logits_of(model(**batch))
    ledger = Ledger()
    with relevance_rules(model, AttnLRP(ledger), ledger):
        inside = logits_of(model(**batch))
    assert torch.allclose(inside, before, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "gpt2"])
def test_with_eager_attention_the_forward_pass_is_the_same_bit_for_bit(family):
    model = decoder(family, "eager") if family in DECODERS else encoder(family, num_registers=3, attention="eager")
    batch = tiny.inputs(family, pad=4)
    with torch.no_grad():
        before = logits_of(model(**batch))
    ledger = Ledger()
    with relevance_rules(model, AttnLRP(ledger), ledger):
        assert torch.equal(logits_of(model(**batch)), before)


@pytest.mark.grid
@EVERY
@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp"])
def test_the_ledger_closes(family, registers, method):
    found = attribute(shared_model(family, registers), tiny.inputs(family, pad=4), method=method)
    for one in found:
        assert abs(one.value - one.total) < tolerance(family)
        assert abs(one.residual) < tolerance(family)
        assert len(one.registers) == registers
        assert one.softmax == 0 if method == "cp-lrp" else one.softmax != 0


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet"])
@pytest.mark.parametrize("head", ["sequence-classification", "token-classification"])
def test_the_ledger_closes_through_other_heads(family, head):
    from regtune.rows.targets import TokenLogit

    target = TokenLogit(position=2) if head.startswith("token") else "predicted"
    for one in attribute(encoder(family, head, num_registers=2), tiny.inputs(family, pad=4), target=target):
        assert abs(one.residual) < tolerance(family)


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert", "deberta-v2", "albert"])
def test_the_ledger_closes_through_heads_that_call_activations_as_functions(family):
    for one in attribute(encoder(family, "sequence-classification"), tiny.inputs(family, pad=4)):
        assert abs(one.residual) < 1e-8


@pytest.mark.parametrize(
    "registers",
    [
        {"placement": "after_cls"},
        {"placement": "suffix"},
        {"depth": "every_layer"},
        {"layer_norm": True},
        {"depth": "every_layer", "placement": "suffix"},
    ],
    ids=str,
)
def test_the_ledger_closes_wherever_registers_join(registers):
    model = encoder("bert", num_registers=3, **registers)
    for one in attribute(model, tiny.inputs("bert", pad=4)):
        assert abs(one.residual) < 1e-8
        assert abs(one.registers).min() > 0


def test_registers_that_are_switched_off_have_no_relevance():
    from regtune.registers.surgery import disable_registers

    model = encoder("bert", num_registers=3)
    with disable_registers(model):
        off = attribute(model, tiny.inputs("bert"))
    plain = attribute(encoder("bert"), tiny.inputs("bert"))
    for one, other in zip(off, plain, strict=True):
        assert len(one.registers) == 0
        assert (one.relevance == other.relevance).all()


@pytest.mark.grid
@EVERY
def test_cp_lrp_of_a_model_without_biases_sums_to_the_logit(family, registers):
    model = without_biases(any_model(family, registers))
    for one in attribute(model, tiny.inputs(family, pad=4), method="cp-lrp"):
        embedded = one.relevance.sum() + one.registers.sum() + one.positions + one.types
        assert one.biases == 0
        assert embedded == pytest.approx(one.value, abs=tolerance(family))


@pytest.mark.grid
@EVERY
def test_a_padded_row_gets_the_scores_that_it_gets_alone(family, registers):
    model, batch = shared_model(family, registers), tiny.inputs(family, pad=6)
    padded = attribute(model, batch)[1]
    alone = attribute(model, {name: value[1:2, :-6] for name, value in batch.items()})[0]
    assert padded.tokens == alone.tokens
    assert padded.relevance == pytest.approx(alone.relevance, abs=1e-9)
    assert padded.registers == pytest.approx(alone.registers, abs=1e-9)
    for part, value in padded.parts().items():
        assert value == pytest.approx(alone.parts()[part], abs=1e-9), part


def rules_that_matter():
    gated = {"modernbert", "llama", "qwen2", "qwen3"}
    for family, registers in CASES:
        yield family, registers, "attention"
        yield family, registers, "activation"
        yield family, registers, "rms_norm" if family in ("llama", "qwen2", "qwen3") else "layer_norm"
        if family in gated:
            yield family, registers, "product"


@pytest.mark.grid
@pytest.mark.parametrize(("family", "registers", "rule"), list(rules_that_matter()))
def test_leaving_out_a_rule_breaks_the_ledger(family, registers, rule, monkeypatch):
    model, batch = shared_model(family, registers), tiny.inputs(family)
    leave_out(monkeypatch, rule)
    found = attribute(model, batch, **ANYTHING)
    assert max(abs(one.residual) for one in found) > 1e-3


def state_of(model):
    return {
        name: (
            sorted(module.__dict__),
            module.forward.__func__ if hasattr(module.forward, "__func__") else module.forward,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            id(module.__dict__.get("config")),
            [parameter.requires_grad for parameter in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }


def training_gradients(model, batch):
    model.zero_grad()
    logits_of(model(**batch)).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.grid
@pytest.mark.parametrize(
    ("family", "registers", "method"),
    [(*case, "attnlrp") for case in CASES] + [(*case, "chefer") for case in CASES if case[0] in CHEFER],
)
def test_afterwards_the_model_and_its_training_gradients_are_what_they_were(family, registers, method):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, batch = any_model(family, registers), tiny.inputs(family, pad=4)
    next(iter(model.parameters())).requires_grad_(False)
    before, state, names = training_gradients(model, batch), state_of(model), list(ALL_ATTENTION_FUNCTIONS)
    attribute(model, batch, method=method)
    assert state_of(model) == state
    assert list(ALL_ATTENTION_FUNCTIONS) == names
    for old, new in zip(before, training_gradients(model, batch), strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "llama"])
def test_an_exception_inside_leaves_the_model_as_it_was(family):
    model, batch = any_model(family), tiny.inputs(family)
    before, state = training_gradients(model, batch), state_of(model)
    ledger = Ledger()
    batch_that_fails = {"input_ids": batch["input_ids"] + 1000}
    with pytest.raises(IndexError), relevance_rules(model, AttnLRP(ledger), ledger):
        model(**batch_that_fails)
    assert state_of(model) == state
    assert all(
        torch.equal(a, b) for a, b in zip(before, training_gradients(model, batch), strict=True) if a is not None
    )


def test_another_model_is_not_touched_meanwhile():
    model, other, batch = encoder("bert"), encoder("bert"), tiny.inputs("bert")
    before = training_gradients(other, batch)
    ledger = Ledger()
    with relevance_rules(model, AttnLRP(ledger), ledger):
        inside = training_gradients(other, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, inside, strict=True) if a is not None)


def test_a_model_that_is_being_explained_is_not_explained_inside():
    model = encoder("bert")
    ledger = Ledger()
    with (
        relevance_rules(model, AttnLRP(ledger), ledger),
        pytest.raises(UnsupportedModelError, match="being explained already"),
        relevance_rules(model, AttnLRP(ledger), ledger),
    ):
        pass


def test_gradients_of_the_parameters_are_not_touched():
    model, batch = encoder("bert", num_registers=2), tiny.inputs("bert")
    before = training_gradients(model, batch)
    attribute(model, batch)
    now = [parameter.grad for parameter in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True) if a is not None)


def test_of_a_linear_model_the_relevance_is_weight_times_input():
    model = linear_model()
    batch = tiny.inputs("bert")
    found = attribute(model, batch, target=StartLogit(position=5))
    weight, bias = model.qa_outputs.weight[0].detach(), model.qa_outputs.bias[0].detach()
    embeddings = model.bert.embeddings.requires_grad_(False)
    for row, one in enumerate(found):
        words = embeddings.word_embeddings(batch["input_ids"][row])
        expected = torch.zeros(20, dtype=torch.float64)
        expected[5] = weight @ words[5]
        assert one.relevance == pytest.approx(expected.detach().numpy(), abs=1e-12)
        assert one.positions == pytest.approx(float(weight @ embeddings.position_embeddings.weight[5]), abs=1e-12)
        assert one.types == pytest.approx(float(weight @ embeddings.token_type_embeddings.weight[0]), abs=1e-12)
        assert one.biases == pytest.approx(float(bias), abs=1e-12)


def linear_model():
    from analyses.attribution.explained import lively

    model = lively(tiny.tiny_model("bert", attention="sdpa", num_hidden_layers=0))
    model.bert.embeddings.LayerNorm = nn.Identity()
    return model.eval()


def test_a_context_answer_is_the_best_span_inside_it():
    model, batch = encoder("bert"), tiny.inputs("bert")
    with torch.no_grad():
        output = model(**batch)
    found = attribute(model, batch, target=Answer(context=(6, 12)))
    for row in range(3):
        spans = [
            float(output.start_logits[row, i] + output.end_logits[row, j]) for i in range(6, 12) for j in range(i, 12)
        ]
        assert found[row].value == pytest.approx(max(spans), abs=1e-10)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "registers"), [*CASES, ("bert", 2)])
@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
def test_relevance_inside_the_model_adds_up_at_every_depth(family, registers, by):
    """Relevance of states, and all that joins or is lost behind them, is the value; heads and neurons carry theirs."""
    model = encoder(family, num_registers=2, depth="every_layer") if registers == 2 else shared_model(family, registers)
    batch = tiny.inputs(family, pad=4)
    for method in ("attnlrp", "cp-lrp"):
        for row, one in enumerate(attribute(model, batch, method=method, by=by)):
            places = registers + (16 if row == 1 else 20)
            neurons = 128 if family == "gpt2" else 48
            shape = {"layer": (4, places), "head": (3, 4, places), "neuron": (3, neurons)}[by]
            assert (one.by, one.inner.shape, one.inner_residual.shape) == (by, shape, (4 if by == "layer" else 3,))
            assert abs(one.inner_residual).max() < 100 * tolerance(family) * max(1, abs(one.inner).sum(-1).max())
            assert abs(one.inner).max() > 1e-6


def test_the_relevance_of_a_head_is_gone_where_the_head_is():
    model, batch = encoder("bert"), tiny.inputs("bert")
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight[:, 8:16] = 0  # head 1 writes nothing
        model.bert.encoder.layer[2].output.dense.weight[:, 7] = 0
    heads = attribute(model, batch, by="head")[0].inner
    assert abs(heads[1, 1]).max() == 0
    assert (abs(heads[1, [0, 2, 3]]).max(-1) > 0).all()
    neurons = attribute(model, batch, by="neuron")[0].inner
    assert neurons[2, 7] == 0
    assert (abs(neurons[2, :7]) > 0).all()


def test_a_rule_left_out_shows_at_the_depths_below_it(monkeypatch):
    model, batch = encoder("bert"), tiny.inputs("bert")
    leave_out(monkeypatch, "activation")
    (one, *_) = attribute(model, batch, by="layer", on_residual="warn", **ANYTHING)
    assert abs(one.inner_residual[-1]) < 1e-8  # nothing but the linear head is behind the last depth
    assert (abs(one.inner_residual[:-1]) > 1e-3).all()
