"""The invariants of the design, for every family, attention implementation, place and depth: `regtune.testing`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from regtune.config import RegisterConfig
from regtune.families.encoders.bert import BERT
from regtune.registers.decoders import _InFront, _Step
from regtune.registers.surgery import add_registers
from regtune.testing import BrokenInvariantError, check_family
from tiny import DECODERS, FAMILIES, MORE_ENCODERS, attentions_of, inputs, tiny_model

FOUR = RegisterConfig(num_registers=4, init_std=0.5)
QUICK = ("bert", "deberta-v2", "modernbert", "gpt2", "gemma3_text")
"""One family of each kind of positions, mask and cache; the others are slow, and so is eager attention beside SDPA for
all but BERT: that both agree is one of the promises."""


def case(family: str, head: str, attention: str):
    """A case, slow or not."""
    slow = family not in QUICK or (family != "bert" and attention != attentions_of(family)[-1])
    return pytest.param(family, head, attention, marks=[pytest.mark.slow] if slow else [])


CASES: list = [
    *(case(family, "question-answering", attention) for family in FAMILIES for attention in attentions_of(family)),
    *(case(family, "token-classification", attentions_of(family)[-1]) for family in MORE_ENCODERS),
    *(case(family, "causal-lm", attention) for family in DECODERS for attention in attentions_of(family)[-1:]),
]


@pytest.mark.parametrize(("family", "head", "attention"), CASES)
def test_every_family_keeps_every_promise(family, head, attention):
    check_family(tiny_model(family, head, attention))


def test_a_description_that_is_not_true_is_refused_part_by_part(monkeypatch):
    wrong = dataclasses.replace(BERT, feed_forward_out="output.projection", values="values")
    monkeypatch.setattr("regtune.testing.family.family_of", lambda *_: wrong)
    with pytest.raises(BrokenInvariantError, match=r"no encoder\.layer\.\*\.output\.projection.*\n.*self\.values"):
        check_family(tiny_model("bert"))
    ruled = dataclasses.replace(BERT, relevance=("attnlrp", "absent"))
    monkeypatch.setattr("regtune.testing.family.family_of", lambda *_: ruled)
    with pytest.raises(BrokenInvariantError, match="\nabsent: UnknownNameError"):
        check_family(tiny_model("bert"), [FOUR])


def test_a_model_that_sees_the_future_is_no_causal_family(monkeypatch):
    causal = dataclasses.replace(BERT, causal=True)
    monkeypatch.setattr("regtune.testing.invariants.family_of", lambda *_: causal)
    with pytest.raises(BrokenInvariantError, match="8 causality and cache: without the last token"):
        check_family(tiny_model("bert"), [FOUR])


def count_registers(self):
    return DynamicLayer.get_seq_length(self)


def see_all(self, masks, **_):
    extended = extend(self, masks, explicit=True)
    if self.joins:
        extended[:, :, : self.n] = 0.0
    return extended


extend = _Step.extend


@pytest.mark.parametrize(
    ("owner", "name", "broken", "expected"),
    [
        (_InFront, "get_seq_length", count_registers, "8 generation: the check broke off with InputError"),
        (_Step, "extend", see_all, "8 causality and cache: without the last token"),
    ],
)
def test_a_broken_decoder_fails_the_promise_it_breaks(monkeypatch, owner, name, broken, expected):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(BrokenInvariantError, match=expected):
        check_family(tiny_model("gpt2", "causal-lm"), [FOUR])


def test_labels_reach_the_last_token_and_no_registers_change_nothing():
    model, batch = tiny_model("bert"), inputs("bert", pad=5)
    plain = model(**batch).start_logits
    assert torch.equal(add_registers(model, RegisterConfig(num_registers=0))(**batch).start_logits, plain)
    labels = {"start_positions": torch.tensor([0, 3, 19]), "end_positions": torch.tensor([2, 3, 19])}
    assert torch.isfinite(add_registers(model, RegisterConfig(num_registers=5))(**batch, **labels).loss)


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "mpnet"])
@pytest.mark.parametrize("placement", ["prefix", "suffix"])
def test_the_pooler_reads_the_first_text_token(family, placement):
    model, batch = (
        add_registers(tiny_model(family, "none"), RegisterConfig(num_registers=5, placement=placement)),
        inputs(family),
    )
    output = model(**batch)
    first = output.last_hidden_state[:, :1]
    again = model.pooler_activation(model.pooler(first[:, 0])) if family == "albert" else model.pooler(first)
    assert torch.equal(output.pooler_output, again)
