"""Integrated gradients: complete to the share that was asked for, in few steps, and equal to a fine rule's scores."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
import torch

import tiny
from analyses.attribution.explained import CASES, encoder, shared_model
from analyses.attribution.test_lrp import linear_model
from regtune.analyses.attribution.attribute import attribute
from regtune.analyses.attribution.attribution import ConservationError
from regtune.errors import ConfigError, MissingExtraError, UnknownNameError
from regtune.rows.targets import StartLogit

START = StartLogit(position=5)


def integrated(model, batch, target=START, tolerance=None, on_residual="refuse", **options):
    options = {"special_tokens": "moved", **options}
    return attribute(
        model,
        batch,
        method="integrated-gradients",
        target=target,
        **options,
        tolerance=tolerance,
        on_residual=on_residual,
    )


def small(pad=3, rows=2, family="bert"):
    return {name: value[:rows] for name, value in tiny.inputs(family, seq=9, pad=pad, batch=rows).items()}


def calm(num_registers=0, **registers):
    """Weights of a fresh model: closer to a trained one's path than the large ones of the other tests."""
    model = encoder("bert", num_registers=num_registers, **registers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "registers" not in name:
                parameter.div_(2.0)
    return model


@pytest.mark.parametrize("mode", ["held", "moved"])
@pytest.mark.parametrize("baseline", ["pad", "zero"])
def test_the_scores_and_the_baselines_value_add_up_to_the_value(mode, baseline):
    for one in integrated(calm(3), small(), baseline=baseline, registers=mode):
        assert one.value == pytest.approx(one.total + one.residual, abs=1e-9)
        assert abs(one.residual) <= 0.001 * max(abs(one.value - one.baseline), 0.01)
        assert (one.positions, one.types, one.biases, one.softmax) == (0, 0, 0, 0)
        assert bool(abs(one.registers).sum() > 0) == (mode == "moved")
        assert len(one.registers) == 3
        assert one.steps >= 2


@pytest.mark.parametrize("deep", [False, True])
def test_the_baseline_is_the_text_of_padding_with_registers_as_they_are_or_at_zero(deep):
    model = calm(2, position="none", depth="every_layer" if deep else "input")
    batch = small()
    absent = {**batch, "input_ids": torch.ones_like(batch["input_ids"])}
    registers = model.bert.registers
    for mode in ("held", "moved"):
        found = integrated(model, batch, registers=mode)
        with torch.no_grad():
            kept = {name: parameter.clone() for name, parameter in registers.named_parameters()}
            if mode == "moved":
                for parameter in registers.parameters():
                    parameter.zero_()
            expected = model(**absent).start_logits[:, 5].tolist()
            for name, parameter in registers.named_parameters():
                parameter.copy_(kept[name])
        assert [one.baseline for one in found] == pytest.approx(expected, abs=1e-9)


def fixed_rule(model, batch, points, baseline="pad"):
    """Scores by one Gauss-Legendre rule over the whole path, straight from the definition."""
    nodes, sizes = np.polynomial.legendre.leggauss(points)
    words = model.bert.embeddings.word_embeddings
    end = words(batch["input_ids"]).detach()
    start = (words.weight[1].detach() if baseline == "pad" else torch.zeros(32)).expand_as(end)
    start = torch.where(batch["attention_mask"].bool().unsqueeze(-1), start, end)
    total = torch.zeros_like(end)
    for node, size in zip((nodes + 1) / 2, sizes / 2, strict=True):
        point = (start + node * (end - start)).requires_grad_()
        handle = words.register_forward_hook(lambda _, args, out, point=point: point)
        value = model(**batch).start_logits[:, 5].sum()
        handle.remove()
        total += size * torch.autograd.grad(value, point)[0]
    return ((end - start) * total).sum(-1)


def test_the_scores_are_those_of_a_fine_rule():
    model, batch = calm(2), small()
    expected = fixed_rule(model, batch, 200)
    for row, one in enumerate(integrated(model, batch, tolerance=1e-5)):
        assert one.relevance == pytest.approx(expected[row, : len(one.relevance)].numpy(), abs=2e-4)


def turning(factor):
    """A model whose path turns early, as trained models' do: large words soon outweigh positions in the LayerNorm."""
    model = encoder("bert", num_registers=2)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(factor)
        model.qa_outputs.weight.mul_(4)
    return model


@pytest.mark.parametrize("factor", [8.0, 16.0])
def test_few_steps_are_enough(factor):
    """With those that tell the error, at most 3.5 times the fewest of any fixed rule, which a search alone tells."""
    model, batch = turning(factor), small(pad=0, rows=6)
    found = integrated(model, batch, baseline="zero")
    changes, fewest = [one.value - one.baseline for one in found], [0] * 6
    fine = fixed_rule(model, batch, 100, "zero")
    for points in range(1, 60):
        scores = fixed_rule(model, batch, points, "zero")
        for row, change in enumerate(changes):
            complete = abs(float(scores[row].sum()) - change) <= 0.001 * abs(change)
            close = abs(scores[row] - fine[row]).max() <= 0.01 * abs(fine[row]).max()
            if not fewest[row] and complete and close:
                fewest[row] = points
        if all(fewest):
            break
    assert all(fewest)
    assert min(fewest) > 3
    assert sum(one.steps for one in found) <= 3.5 * sum(fewest), (fewest, [one.steps for one in found])


@pytest.mark.parametrize("factor", [4.0, 8.0, 16.0])
def test_no_token_is_further_off_than_is_printed(factor):
    """Where the sum is right to a hundredth, tokens may be wrong by a tenth: each has an error of its own."""
    model, batch = turning(factor), small(pad=0, rows=6)
    fine = fixed_rule(model, batch, 100, "zero")
    for tolerance in (0.01, None):
        for row, one in enumerate(integrated(model, batch, baseline="zero", tolerance=tolerance)):
            wrong = abs(one.relevance - fine[row].numpy()).max() / abs(fine[row]).max()
            assert wrong <= one.error <= 10 * (tolerance or 0.001)


def test_a_rule_that_was_not_compared_has_no_known_error_and_takes_no_more_steps_than_it_may():
    model, batch = calm(), small()
    with pytest.warns(RuntimeWarning, match="isn't exact: a score of row 0 .* may be off by inf of the largest"):
        found = integrated(model, batch, max_steps=2, tolerance=10.0, on_residual="warn")
    assert [(one.steps, one.error) for one in found] == [(2, float("inf"))] * 2
    for most in (5, 6, 17, 18, 40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = integrated(turning(16.0), batch, max_steps=most, tolerance=1e-7, on_residual="warn")
        assert all(one.steps <= most for one in found), most


def test_of_a_linear_model_the_score_is_weight_times_the_change_of_the_input():
    model, batch = linear_model(), tiny.inputs("bert")
    words = model.bert.embeddings.word_embeddings
    change = (words(batch["input_ids"]) - words.weight[1]).detach()
    expected = (change[:, 5] @ model.qa_outputs.weight[0].detach()).tolist()
    found = integrated(model, batch)
    assert [one.relevance[5] for one in found] == pytest.approx(expected, rel=1e-6)
    assert [one.steps for one in found] == [18, 18, 18]


@pytest.mark.parametrize("mode", ["held", "moved"])
def test_neighbours_padding_and_the_internal_batch_change_no_score(mode):
    model, batch = calm(2), small()
    together = integrated(model, batch, registers=mode)
    for row, length in ((0, 9), (1, 6)):
        alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
        (single,) = integrated(model, alone, registers=mode, internal_batch_size=1)
        assert together[row].relevance == pytest.approx(single.relevance, abs=1e-9)
        assert together[row].registers == pytest.approx(single.registers, abs=1e-9)
        assert together[row].steps == single.steps


def test_special_tokens_are_held_where_they_are_known():
    model, batch = calm(), small(pad=0)
    classes = torch.full((2, 9), 4, dtype=torch.int8)
    classes[:, 0], classes[:, 8] = 0, 1
    for one in integrated(model, {**batch, "token_classes": classes}, special_tokens="held"):
        assert one.relevance[0] == one.relevance[8] == 0
        assert (one.relevance[1:8] != 0).all()
    with pytest.raises(ConfigError, match="nothing says which they are"):
        integrated(model, batch, special_tokens="held")


@pytest.mark.parametrize(("family", "registers"), [case for case in CASES if case[1] or case[0] in ("llama", "gpt2")])
def test_registers_move_in_every_family(family, registers):
    from regtune.rows.targets import TokenLogit

    model, batch = shared_model(family, registers), small(family=family)
    target = START if registers else TokenLogit(position=5, label=7)
    for one in integrated(model, batch, target, tolerance=0.2, baseline="zero", registers="moved"):
        assert one.value == pytest.approx(one.total + one.residual, abs=1e-6)
        assert (abs(one.registers) > 0).all()


def test_a_text_that_is_its_own_baseline_has_no_scores_and_is_complete():
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    (one,) = integrated(calm(), batch, StartLogit(position=2))
    assert abs(one.relevance).max() == 0
    assert one.baseline == pytest.approx(one.value, abs=1e-12)
    assert (one.steps, one.error) == (18, 0.0)


def test_a_tighter_tolerance_takes_more_steps_and_one_that_is_not_reached_is_refused():
    model, batch = turning(4.0), small()
    loose, tight = integrated(model, batch), integrated(model, batch, tolerance=1e-5)
    assert sum(one.steps for one in tight) > sum(one.steps for one in loose)
    assert all(abs(one.residual) <= 1e-5 * max(abs(one.value - one.baseline), 0.01) for one in tight)
    with pytest.raises(ConservationError, match="integrated-gradients doesn't conserve"):
        integrated(model, batch, tolerance=1e-4, max_steps=6)
    with pytest.warns(RuntimeWarning, match="doesn't conserve"):
        integrated(model, batch, tolerance=1e-4, max_steps=6, on_residual="warn")


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UnknownNameError, match=r"mode of registers 'move'.*held, moved"):
        integrated(calm(), small(), registers="move")
    with pytest.raises(ConfigError, match="max_steps=1"):
        integrated(calm(), small(), max_steps=1)
    with pytest.raises(ConfigError, match="internal_batch_size=0"):
        integrated(calm(), small(), internal_batch_size=0)


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"regtune\[analysis\]"):
        integrated(calm(), small())
