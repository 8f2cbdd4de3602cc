"""Chefer's method: relevance is kept through all blocks, and the roll-out is what the paper writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import tiny
from analyses.attribution.explained import CHEFER, encoder
from regtune.analyses.attribution import chefer
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.attribution import ConservationError
from regtune.analyses.attribution.chefer import CheferRules
from regtune.analyses.attribution.lrp import STATES, relevance_rules
from regtune.analyses.attribution.rules import Ledger
from regtune.errors import ConfigError, UnknownNameError
from regtune.families import family_of
from regtune.families._family import modules_at
from regtune.rows.targets import Answer, ClassLogit, StartLogit

CASES = pytest.mark.parametrize(("family", "registers"), [(family, n) for family in CHEFER for n in (0, 3)])


@CASES
def test_relevance_sums_to_one_in_front_of_every_block(family, registers):
    model, batch = encoder(family, "sequence-classification", num_registers=registers), tiny.inputs(family, pad=4)
    arriving: list[torch.Tensor] = []

    def watch(_, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        states.register_hook(lambda relevance: arriving.append(relevance.sum((1, 2))))

    backbone, rules, ledger = model.base_model, CheferRules(), Ledger()
    layers = list(modules_at(backbone, *family_of(backbone.config, "relevance").within_layers()))
    handles = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    with relevance_rules(model, rules, ledger, inputs=STATES):
        torch.autograd.grad(model(**batch).logits[:, 1].sum(), ledger.leaves[STATES])
    for handle in handles:
        handle.remove()
    assert len(arriving) == 3
    for relevance in arriving:
        assert torch.allclose(relevance, torch.ones_like(relevance), rtol=0, atol=1e-9)


@CASES
def test_scores_are_shares_and_nothing_is_lost(family, registers):
    found = attribute(encoder(family, num_registers=registers), tiny.inputs(family, pad=4), method="chefer")
    for one in found:
        assert one.total == pytest.approx(1, abs=1e-9)
        assert one.relevance.min() >= 0
        assert abs(one.residual) < 1e-8
        assert len(one.registers) == registers


@CASES
def test_a_padded_row_gets_the_scores_that_it_gets_alone(family, registers):
    model, batch = encoder(family, num_registers=registers), tiny.inputs(family, pad=6)
    padded = attribute(model, batch, method="chefer")[1]
    alone = attribute(model, {name: value[1:2, :-6] for name, value in batch.items()}, method="chefer")[0]
    assert padded.relevance == pytest.approx(alone.relevance, abs=1e-9)
    assert padded.registers == pytest.approx(alone.registers, abs=1e-9)


@pytest.mark.parametrize("placement", ["prefix", "after_cls", "suffix"])
def test_registers_keep_their_scores_apart_wherever_they_stand(placement):
    model, batch = encoder("bert", num_registers=3, placement=placement), tiny.inputs("bert", pad=4)
    for one in attribute(model, batch, method="chefer", target=StartLogit(position=4)):
        assert one.total == pytest.approx(1, abs=1e-9)
        # A token keeps its own identity path through every block, so the explained one scores highest.
        assert one.relevance.argmax() == 4


def independent_maps(model, batch, position):
    """Gradient times relevance of the attention of the last block of a BERT, each from its definition."""
    attention = model.bert.encoder.layer[-1].attention.self
    kept = {}

    def keep(module, args, output):
        kept["weights"] = output[1]
        output[1].retain_grad()

    handle = attention.register_forward_hook(keep)
    model(**batch).start_logits[:, position].sum().backward()
    handle.remove()
    return kept["weights"].grad


def test_the_last_block_alone_is_its_own_map():
    model, batch = encoder("bert", attention="eager"), tiny.inputs("bert")
    gradient = independent_maps(model, batch, 5)
    rules, ledger = CheferRules(), Ledger()
    with relevance_rules(model, rules, ledger, inputs=STATES):
        (relevance,) = torch.autograd.grad(model(**batch).start_logits[:, 5].sum(), rules.weights[-1])
    block = torch.eye(20, dtype=torch.float64) + (gradient * relevance).clamp(min=0).mean(1)
    expected = (block / block.sum(-1, keepdim=True))[:, 5]
    found = attribute(model, batch, method="chefer", target=StartLogit(position=5), start_layer=2)
    for row, one in enumerate(found):
        assert one.relevance == pytest.approx(expected[row].numpy(), abs=1e-10)


def test_the_default_rolls_out_all_blocks():
    model, batch = encoder("bert"), tiny.inputs("bert")
    default, first, last = (
        attribute(model, batch, method="chefer", **options)[0].relevance
        for options in ({}, {"start_layer": 0}, {"start_layer": 2})
    )
    assert (default == first).all()
    assert abs(default - last).max() > 1e-6


def shares(model, batch, target, **options):
    found = attribute(model, batch, method="chefer", target=target, **options)
    return np.array([[*one.registers, *one.relevance] for one in found])


@pytest.mark.parametrize("start_layer", [0, 2])
def test_a_contrast_is_the_difference_of_its_two_sides(start_layer):
    model, batch = encoder("bert", "sequence-classification", num_registers=2), tiny.inputs("bert")
    by_hand = shares(model, batch, ClassLogit(label=1), start_layer=start_layer)
    by_hand -= shares(model, batch, ClassLogit(label=0), start_layer=start_layer)
    found = shares(model, batch, ClassLogit(label=1, minus=0), start_layer=start_layer)
    assert abs(found).max() == pytest.approx(abs(by_hand).max(), rel=1e-9)
    assert abs(by_hand).max() > 1e-4
    for one, other in zip(found, by_hand, strict=True):
        assert spearmanr(one, other).statistic == pytest.approx(1)
    assert found == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("minus", ["null", "runner-up"])
def test_an_answer_and_what_is_subtracted_are_propagated_apart(minus):
    model, batch = encoder("bert", num_registers=2), tiny.inputs("bert")
    (best, *_) = attribute(model, batch, method="attnlrp", target="answer")
    start, end = (int(word) for word in best.target.split() if word.isdigit())
    first = {name: value[:1] for name, value in batch.items()}
    found = shares(model, first, Answer(start=start, end=end, minus=minus))
    (contrast,) = attribute(model, first, target=Answer(start=start, end=end, minus=minus))
    other = (0, 0) if minus == "null" else tuple(int(word) for word in contrast.target.split()[-3:] if word.isdigit())
    by_hand = shares(model, first, Answer(start=start, end=end)) - shares(
        model, first, Answer(start=other[0], end=other[1])
    )
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert abs(found.sum()) < 1e-9
    assert abs(found).max() > 0.01


def test_relevance_that_vanished_is_no_good_law(monkeypatch):
    """Both sides at once, as it was: the sum starts at 0, the skip rule hands out nothing, and the law holds."""

    def together(target):
        return [(target, 1.0)]

    model, batch = encoder("bert", "sequence-classification"), tiny.inputs("bert")
    monkeypatch.setattr(chefer, "sides_of", together)
    with pytest.raises(ConservationError, match="chefer"):
        attribute(model, batch, method="chefer", target=ClassLogit(label=1, minus=0), tolerance=2.0)
    with pytest.warns(RuntimeWarning, match=r"lost its relevance: .* a share of .* of what it started from"):
        attribute(model, batch, method="chefer", target=ClassLogit(label=1, minus=0), tolerance=2.0, on_residual="warn")


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="start_layer=3 doesn't exist; this model has blocks 0 to 2"):
        attribute(encoder("bert"), tiny.inputs("bert"), method="chefer", start_layer=3)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet"])
def test_a_family_without_these_rules_says_which_it_has(family):
    with pytest.raises(UnknownNameError, match="attnlrp, cp-lrp, gradient-input"):
        attribute(encoder(family), tiny.inputs(family), method="chefer")
