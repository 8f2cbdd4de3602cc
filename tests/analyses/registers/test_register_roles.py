"""Effects and roles from numbers with known answers."""

import math

import numpy as np
import pytest
import torch

from regtune.analyses.outcomes import Outcomes, row_losses
from regtune.analyses.registers.effects import effects
from regtune.analyses.registers.knock_out import KnockOut
from regtune.analyses.registers.roles import equal_roles_p, judge_roles, rank_correlation


def scored(loss, f1=0.5, answers=None):
    loss = np.asarray(loss, dtype=np.float64)
    return Outcomes(loss=loss, score=np.full(len(loss), f1), said=tuple(answers or ["a"] * len(loss)))


def judged(changes, *, together=None):
    """The verdict on knock-outs that change the loss by these amounts."""
    questions, count = changes.shape
    untouched = scored(np.full(questions, 2.0))
    parts = {KnockOut(how="mask", registers=(i,)): scored(2.0 + changes[:, i]) for i in range(count)}
    parts[KnockOut(how="mask")] = scored(2.0 + (changes.sum(1) if together is None else together))
    found = effects(untouched, parts, resamples=1000)
    return judge_roles(changes, found, resamples=1000)


def test_the_loss_of_a_span_is_the_mean_negative_log_probability_of_both_ends_padding_aside():
    logits = [torch.tensor([[1, 1, 4, 1, 1, 2, 9]]).log(), torch.tensor([[1, 1, 1, 1, 5, 1, 9]]).log()]
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0]])}
    batch |= {"start_positions": torch.tensor([2]), "end_positions": torch.tensor([4])}
    (loss,) = row_losses(dict(zip(("start_logits", "end_logits"), logits, strict=True)), batch)
    assert float(loss) == pytest.approx(-(math.log(0.4) + math.log(0.5)) / 2, rel=1e-6)


def test_the_loss_of_a_class_is_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert row_losses({"logits": logits}, {"labels": labels}).numpy() == pytest.approx(expected.numpy(), rel=1e-5)
    assert row_losses({"logits": logits}, {}) is None


def test_effects_are_differences_from_the_untouched_model():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, 40)
    parts = {
        KnockOut(how="mask", registers=(0,)): scored(base + 0.3, f1=0.4, answers=["b"] * 10 + ["a"] * 30),
        KnockOut(how="mask", registers=(1,)): scored(base),
        KnockOut(how="mask"): scored(base + rng.normal(0.1, 0.2, 40)),
    }
    first, second, both = effects(scored(base), parts, resamples=1000)
    assert first.loss.difference == pytest.approx(0.3)
    assert (first.loss.low, first.loss.high) == pytest.approx((0.3, 0.3))
    assert first.score.difference == pytest.approx(-0.1)
    assert first.said.difference == pytest.approx(0.25)
    low, high = first.said.low, first.said.high
    assert 0.05 < low < 0.25 < high < 0.45
    assert (second.loss.difference, second.loss.p_value, second.said.difference) == (0, 1, 0)
    assert both.register is None
    assert both.loss.low < both.loss.difference < both.loss.high


def test_p_values_of_single_registers_are_corrected_together_and_each_way_apart():
    rng = np.random.default_rng(1)
    base = np.zeros(30)
    parts = {KnockOut(how="mask", registers=(i,)): scored(rng.normal(0.35, 1, 30)) for i in range(4)}
    parts[KnockOut(how="zero", registers=(0,))] = scored(rng.normal(0.35, 1, 30))
    parts[KnockOut(how="mask")] = scored(rng.normal(0.35, 1, 30))
    found = effects(scored(base), parts, resamples=1000)
    family = [effect.loss for effect in found[:4]]
    smallest = min(change.p_value for change in family)
    assert min(change.p_adjusted for change in family) == pytest.approx(min(1, 4 * smallest))
    for effect in found[4:]:
        assert effect.loss.p_adjusted == effect.loss.p_value


def test_unequal_roles_are_named_with_the_largest_effect_first():
    rng = np.random.default_rng(0)
    changes = rng.normal([0.0, 0.2, 0.0, 0.6, -0.3], 0.1, (60, 5))
    changes[:, 2] = 0.0
    roles = judged(changes)
    assert roles.matter == (1, 3)
    assert roles.in_the_way == (4,)
    assert roles.p_value < 0.01
    assert roles.verdict.index("register 3 (+") < roles.verdict.index("register 1 (+")
    assert "without register 4 (-" in roles.verdict
    assert roles.spread == pytest.approx(0.9, abs=0.1)
    assert roles.spread <= roles.spread_high < 1.1


def test_registers_that_stand_in_for_one_another_show_it_together():
    rng = np.random.default_rng(0)
    changes = rng.normal(0, 1e-6, (50, 3))
    roles = judged(changes, together=rng.normal(0.5, 0.1, 50))
    assert roles.p_value == 1.0
    assert roles.matter == ()
    assert "no register by itself" in roles.verdict
    assert "all together change it by +0.4872" in roles.verdict


def test_equal_roles_are_rejected_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(40):
        shared = rng.normal(0.2, 1, (25, 1))  # questions differ, registers don't
        p_values.append(equal_roles_p(shared + rng.normal(0, 0.3, (25, 4)), seed=seed))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.175
    assert 0.3 < np.mean(p_values) < 0.7


def test_rounding_noise_is_no_difference_of_roles():
    noise = np.random.default_rng(0).normal([0, 1e-6, 2e-6], 1e-7, (200, 3))
    assert equal_roles_p(noise) == 1.0


def test_rank_correlation_of_known_orders():
    rng = np.random.default_rng(0)
    effect = np.arange(6) + rng.normal(0, 0.01, (40, 6))
    relevance = np.exp(np.arange(6)) + rng.normal(0, 0.01, (40, 6))
    same, opposite = rank_correlation(relevance, effect), rank_correlation(-relevance, effect)
    assert (same.rho, same.low, same.high) == pytest.approx((1, 1, 1))
    assert opposite.rho == pytest.approx(-1)
    assert same.p_value == pytest.approx(2 / 720, abs=0.004)
    assert same.needed == pytest.approx(0.886, abs=0.02)  # the tabled critical value for N = 6
    assert "N = 6 is small" in same.sentence


def test_rank_correlation_says_when_nothing_could_stand_out():
    rng = np.random.default_rng(0)
    four = rank_correlation(np.arange(4) + rng.normal(0, 0.01, (9, 4)), np.arange(4) + rng.normal(0, 0.01, (9, 4)))
    assert four.needed is None
    assert "no value could stand out" in four.sentence
    two = rank_correlation(np.ones((9, 2)), np.ones((9, 2)))
    flat = rank_correlation(np.ones((9, 5)), rng.normal(0, 1, (9, 5)))
    assert two.rho is flat.rho is None
    assert "No rank correlation" in flat.sentence
