"""The Registers module: the two moves and the start values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.config import RegisterConfig
from regtune.registers.passes import Layout
from regtune.registers.registers import Registers


def make(n: int = 3, **changes) -> Registers:
    return Registers(RegisterConfig(num_registers=n, **changes), width=4, hidden=6, num_layers=3)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 6), seq=st.integers(1, 9), columns=st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_what_is_inserted_anywhere_comes_out_again(n, seq, columns):
    first = torch.tensor(columns).clamp(max=seq)
    text = torch.randn(len(columns), seq, 4)
    own = torch.randn(len(columns), n, 4)
    for where in (None, first):
        layout = Layout(n, where, seq)
        total = layout.insert(own, text)
        assert total.shape == (len(columns), n + seq, 4)
        assert torch.equal(layout.strip(total), text)
        assert torch.equal(layout.registers_of(total), own)
        for row, k in enumerate(columns if where is not None else [0] * len(columns)):
            k = min(k, seq)
            assert torch.equal(total[row, k : k + n], own[row]), "registers stand together at their column"
            assert torch.equal(total[row, :k], text[row, :k])


def test_start_values_are_a_truncated_normal():
    registers = Registers(RegisterConfig(num_registers=200), width=50, hidden=50, num_layers=2)
    for values in (registers.tokens, registers.positions):
        assert values.abs().max() <= 0.04
        assert values.mean().item() == pytest.approx(0, abs=1e-3)
        # A normal cut at two standard deviations has 0.8796 of its standard deviation.
        assert values.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)


def test_no_two_registers_start_alike():
    for config in ({}, {"init": "zeros"}, {"position": "none"}):
        vectors = make(5, **config)(1)[0]
        assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 1e-4


def test_depth_adds_fresh_vectors_for_every_layer_but_the_first():
    assert make(depth="input").deep is None
    assert make(depth="every_layer").deep.shape == (2, 3, 6)


def test_registers_without_positions_have_no_position_parameter():
    registers = make(position="none")
    assert [name for name, _ in registers.named_parameters()] == ["tokens"]
    assert torch.equal(registers(2)[1], registers.tokens)


def test_the_module_says_what_it_is():
    assert repr(make(3)) == "Registers(3, placement='prefix', depth='input')"
