"""Each rule against its equation in the papers, written out again here element by element."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regtune.analyses.attribution.chefer import CheferRules
from regtune.analyses.attribution.rules import BIASES, SOFTMAX, AttnLRP, Ledger

EXACT = {"rtol": 0, "atol": 1e-12}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relevance(output, inputs, start):
    """x·g of every input, when the relevance of the output is `start`."""
    gradients = torch.autograd.grad(output, inputs, start / output)
    return [x.detach() * g for x, g in zip(inputs, gradients, strict=True)]


def test_linear_epsilon_rule():
    x, start = numbers(2, 4).requires_grad_(), numbers(2, 3, seed=1)
    layer, ledger = nn.Linear(4, 3).double().requires_grad_(False), Ledger()
    (found,) = relevance(AttnLRP(ledger).linear(layer, x, layer(x)), [x], start)
    expected, bias = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for row in range(2):
        for k in range(3):
            z = layer.weight[k] @ x[row].detach() + layer.bias[k]
            for j in range(4):
                expected[row, j] += layer.weight[k, j] * x[row, j].detach() / z * start[row, k]
            bias[row] += layer.bias[k] / z * start[row, k]
    assert torch.allclose(found, expected, **EXACT)
    assert torch.allclose(ledger.sums[BIASES], bias, **EXACT)


def test_layer_norm_rule_holds_the_deviation_fixed():
    x, start = numbers(2, 5).requires_grad_(), numbers(2, 5, seed=1)
    norm, ledger = nn.LayerNorm(5).double().requires_grad_(False), Ledger()
    norm.weight.copy_(numbers(5, seed=2))
    norm.bias.copy_(numbers(5, seed=3))
    (found,) = relevance(AttnLRP(ledger).layer_norm(norm, x, norm), [x], start)
    values, expected, bias = x.detach(), torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for row in range(2):
        mean = values[row].mean()
        deviation = ((values[row] - mean).square().mean() + norm.eps).sqrt()
        for k in range(5):
            y = norm.weight[k] * (values[row, k] - mean) / deviation + norm.bias[k]
            for j in range(5):
                share = ((1.0 if j == k else 0.0) - 1 / 5) * norm.weight[k] / deviation * values[row, j]
                expected[row, j] += share / y * start[row, k]
            bias[row] += norm.bias[k] / y * start[row, k]
    assert torch.allclose(found, expected, **EXACT)
    assert torch.allclose(ledger.sums[BIASES], bias, **EXACT)


@pytest.mark.parametrize("rule", ["activation", "rms_norm"])
def test_identity_rule_passes_all_relevance(rule):
    x, start = numbers(2, 5).requires_grad_(), numbers(2, 5, seed=1)
    function = nn.GELU() if rule == "activation" else lambda v: v / v.square().mean(-1, keepdim=True).sqrt()
    (found,) = relevance(getattr(AttnLRP(Ledger()), rule)(x, function), [x], start)
    assert torch.allclose(found, start, **EXACT)


def test_an_activation_at_zero_is_no_division_by_zero():
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(AttnLRP(Ledger()).activation(x, torch.tanh).sum(), x)
    assert torch.isfinite(gradient).all()


def test_gated_product_is_halved():
    a, b, start = numbers(2, 3).requires_grad_(), numbers(2, 3, seed=1).requires_grad_(), numbers(2, 3, seed=2)
    for found in relevance(AttnLRP(Ledger()).product(torch.mul, a, b), [a, b], start):
        assert torch.allclose(found, start / 2, **EXACT)


def test_a_product_with_a_constant_gives_it_nothing():
    a, b, start = numbers(2, 3).requires_grad_(), numbers(2, 3, seed=1), numbers(2, 3, seed=2)
    (found,) = relevance(AttnLRP(Ledger()).product(torch.mul, a, b), [a], start)
    assert torch.allclose(found, start, **EXACT)


def explicit_attention(query, key, value, scaling, start):
    """R of query, key and value and what the softmax absorbs, by the paper's equations, one head, no mask."""
    places, width = query.shape
    scores = scaling * query @ key.T
    weights = torch.softmax(scores, -1)
    output = weights @ value
    r_weights, r_value = torch.zeros_like(weights), torch.zeros_like(value)
    for j in range(places):
        for p in range(width):
            for i in range(places):
                share = weights[j, i] * value[i, p] / (2 * output[j, p]) * start[j, p]
                r_weights[j, i] += share
                r_value[i, p] += share
    r_scores = torch.zeros_like(scores)
    for j in range(places):
        for i in range(places):
            r_scores[j, i] = scores[j, i] * (r_weights[j, i] - weights[j, i] * r_weights[j].sum())
    r_query, r_key = torch.zeros_like(query), torch.zeros_like(key)
    for j in range(places):
        for i in range(places):
            for d in range(width):
                share = scaling * query[j, d] * key[i, d] / (2 * scores[j, i]) * r_scores[j, i]
                r_query[j, d] += share
                r_key[i, d] += share
    return r_query, r_key, r_value, r_weights.sum() - r_scores.sum()


def test_attention_agrees_with_the_explicit_rules():
    query, key, value = (numbers(1, 1, 4, 3, seed=seed).requires_grad_() for seed in range(3))
    start, ledger = numbers(1, 1, 4, 3, seed=3), Ledger()
    rules = AttnLRP(ledger)
    output = rules.product(torch.matmul, rules.attention_weights(query, key, None, 0.5), value)
    found = relevance(output, [query, key, value], start)
    *expected, absorbed = explicit_attention(*(x.detach()[0, 0] for x in (query, key, value)), 0.5, start[0, 0])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one[0, 0], other, rtol=0, atol=1e-10)
    assert float(ledger.sums[SOFTMAX]) == pytest.approx(float(absorbed), abs=1e-10)


def test_cp_lrp_gives_all_to_the_values():
    query, key, value = (numbers(1, 1, 4, 3, seed=seed).requires_grad_() for seed in range(3))
    start = numbers(1, 1, 4, 3, seed=3)
    rules = AttnLRP(Ledger(), constant_attention=True)
    weights = rules.attention_weights(query, key, None, 0.5)
    assert not weights.requires_grad
    (found,) = relevance(rules.product(torch.matmul, weights, value), [value], start)
    assert float(found.sum()) == pytest.approx(float(start.sum()), abs=1e-10)


def backwards(output, inputs, start):
    """Chefer's rules carry relevance itself."""
    return torch.autograd.grad(output, inputs, start)


def test_chefer_linear_counts_products_of_equal_sign():
    x, start = numbers(2, 4).requires_grad_(), numbers(2, 3, seed=1)
    layer = nn.Linear(4, 3).double().requires_grad_(False)
    (found,) = backwards(CheferRules().linear(layer, x, layer(x)), [x], start)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for row in range(2):
        for k in range(3):
            products = (layer.weight[k] * x[row].detach()).clamp(min=0)
            for j in range(4):
                expected[row, j] += products[j] / products.sum() * start[row, k]
    assert torch.allclose(found, expected, **EXACT)
    assert torch.allclose(found.sum(), start.sum(), **EXACT)


def test_chefer_matrix_product_shares_by_contribution_and_halves():
    a, b, start = numbers(1, 3, 4).requires_grad_(), numbers(1, 4, 2, seed=1).requires_grad_(), numbers(1, 3, 2, seed=2)
    found = backwards(CheferRules().product(torch.matmul, a, b), [a, b], start)
    expected = [torch.zeros(3, 4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)]
    with torch.no_grad():
        for i in range(3):
            for k in range(2):
                z = (a[0, i] * b[0, :, k]).sum()
                for j in range(4):
                    share = a[0, i, j] * b[0, j, k] / z * start[0, i, k] / 2
                    expected[0][i, j] += share
                    expected[1][j, k] += share
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one[0], other, **EXACT)


def test_chefer_skip_shares_by_the_size_of_the_sums():
    a, b, start = (numbers(2, 3, 4, seed=seed) for seed in range(3))
    a.requires_grad_(), b.requires_grad_()
    found = backwards(CheferRules().total(torch.add, a, b), [a, b], start)
    with torch.no_grad():
        for row in range(2):
            parts = [x[row] * start[row] / (a[row] + b[row]) for x in (a, b)]
            sizes = [float(part.sum().abs()) for part in parts]
            for one, part, size in zip(found, parts, sizes, strict=True):
                wanted = size / sum(sizes) * start[row].sum()
                assert torch.allclose(one[row], part / part.sum() * wanted, **EXACT)


def test_chefer_passes_relevance_through_activations_and_norms():
    x, start, rules = numbers(2, 4).requires_grad_(), numbers(2, 4, seed=1), CheferRules()
    norm = nn.LayerNorm(4).double()
    assert torch.equal(backwards(rules.activation(x, torch.tanh), [x], start)[0], start)
    assert torch.equal(backwards(rules.layer_norm(norm, x, norm), [x], start)[0], start)
