"""Claims about dropout on a CPU: the same distribution, the same mathematics."""

import pytest
import torch
from torch.nn import functional

from regtune.training import cpu_dropout
from regtune.training.cpu_dropout import (
    DropoutBits,
    FastCpuDropout,
    dropout_attention,
    dropout_factors,
    recomputed_alike,
)
from tiny import tiny_model
from tiny_windows import PAD, tiny_windows


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dropped_share_is_p_and_neighbours_are_independent(p, dtype):
    factors = dropout_factors((1000, 1003), p, dtype)
    dropped = (factors == 0).double().flatten()
    error = (p * (1 - p) / dropped.numel()) ** 0.5
    assert abs(float(dropped.mean()) - p) < 5 * error
    for step in (1, 2, 4, 1003):
        both = float((dropped[:-step] * dropped[step:]).mean())
        assert abs(both - p * p) < 5 * (p * p / dropped.numel()) ** 0.5
    kept = factors[factors != 0]
    assert torch.all(kept == torch.tensor(1 / (1 - p), dtype=dtype))


def test_the_same_torch_seed_gives_the_same_mask_and_the_next_call_another():
    torch.manual_seed(7)
    first, second = (dropout_factors((50, 3), 0.5, torch.float32) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(dropout_factors((50, 3), 0.5, torch.float32), first)
    assert not torch.equal(first, second)


def _attention_case(*shape, dtype=torch.float32):
    """q, k, v of [batch, heads, positions, width] and a mask that hides the end of the first row."""
    shape = shape or (2, 3, 5, 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    mask = torch.ones(shape[0], 1, 1, shape[2], dtype=torch.bool)
    mask[0, ..., shape[2] // 2 + 1 :] = False
    return q, k, v, mask


def _defined(q, k, v, mask, p):
    """The definition, in float64, with the factors that the next call draws."""
    batch, heads, length, width = q.shape
    state = torch.get_rng_state()
    factors = DropoutBits(p, torch.float32).factors(batch, heads * length * length).double()
    torch.set_rng_state(state)
    scores = q.double() @ k.double().transpose(-1, -2) / width**0.5
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(-1) * factors.reshape(scores.shape)) @ v.double()


@pytest.mark.parametrize("piece", [1, 80, 1 << 19])  # scores: one row of the batch at a time, two, all
@pytest.mark.parametrize("biased", [False, True])
def test_attention_and_its_gradients_are_those_of_the_definition(monkeypatch, piece, biased):
    monkeypatch.setattr(cpu_dropout, "_PIECE", piece)
    q, k, v, mask = _attention_case(3, 3, 5, 4)
    mask = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(1)) if biased else mask
    defined = _defined(q, k, v, mask, 0.3)
    ours = dropout_attention(q, k, v, mask=mask, p=0.3)
    torch.testing.assert_close(ours, defined.float())
    probe = torch.randn(ours.shape)
    for mine, theirs in zip(
        torch.autograd.grad((ours * probe).sum(), (q, k, v)),
        torch.autograd.grad((defined * probe).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_attention_is_off_by_rounding_alone():
    """A rounding to bfloat16 moves a number by up to 2⁻⁹ of itself; on average a few together stay within 4."""
    q, k, v, mask = _attention_case(4, 4, 64, 32, dtype=torch.bfloat16)
    defined = _defined(q, k, v, mask, 0.1)
    ours = dropout_attention(q, k, v, mask=mask, p=0.1)
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    pairs = [
        (ours, defined),
        *zip(
            torch.autograd.grad(ours, (q, k, v), probe),
            torch.autograd.grad(defined, (q, k, v), probe.double()),
            strict=True,
        ),
    ]
    for mine, exact in pairs:
        mine, exact = mine.detach().double(), exact.detach().double()
        off = (mine - exact).norm() / exact.norm()
        assert off.item() < 4 * 2**-9


def test_how_the_batch_is_cut_changes_nothing(monkeypatch):
    q, k, v, mask = _attention_case(5, 3, 7, 4)
    outputs = []
    for piece in (1, 400, 1 << 19):
        monkeypatch.setattr(cpu_dropout, "_PIECE", piece)
        torch.manual_seed(1)
        outputs.append(dropout_attention(q, k, v, mask=mask, p=0.3))
    assert torch.equal((outputs[0] == 0), (outputs[2] == 0))
    for other in outputs[1:]:
        torch.testing.assert_close(outputs[0], other)


def test_added_masks_and_true_false_masks_agree():
    q, k, v, mask = _attention_case()
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.manual_seed(1)
    first = dropout_attention(q, k, v, mask=mask, p=0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout_attention(q, k, v, mask=added, p=0.3), first)


def test_in_the_context_the_mean_over_draws_is_attention_without_dropout():
    q, k, v, mask = _attention_case()
    draws = 4000
    copies = [part.detach().repeat(draws, 1, 1, 1) for part in (q, k, v, mask)]
    with FastCpuDropout():
        drawn = functional.scaled_dot_product_attention(*copies[:3], attn_mask=copies[3], dropout_p=0.2)
    plain = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    stacked = drawn.view(draws, *plain.shape)
    error = stacked.std(dim=0) / draws**0.5
    assert torch.all((stacked.mean(dim=0) - plain).abs() < 5 * error + 1e-6)
    assert float(stacked.std(dim=0).min()) > 0.01


def test_what_is_not_covered_runs_as_ever():
    q, k, v, mask = _attention_case()
    x = torch.randn(20)
    with FastCpuDropout():
        assert functional.dropout(x, 0.5, training=False) is x
        assert torch.equal(functional.dropout(x, 0.0), x)
        assert torch.equal(functional.dropout(x, 1.0), torch.zeros(20))
        assert functional.dropout(x.double(), 0.5).dtype == torch.float64
        without = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(without, functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradient_checkpointing_draws_the_same_dropout_again(attention):
    from regtune.tasks.qa.task import collate

    batch = collate(tiny_windows(4), PAD)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("bert", attention=attention).train()
        if checkpointing:
            model.config.use_cache = False
            model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": recomputed_alike})
        torch.manual_seed(3)
        with FastCpuDropout():
            loss = model(**batch).loss
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
