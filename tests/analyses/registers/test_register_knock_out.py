"""Knock-outs: what each takes away, and that nothing of it stays."""

from typing import get_args

import pytest
import torch

from analyses.attribution.explained import encoder
from regtune.analyses.registers.knock_out import How, KnockOut, knocked_out, layer_inputs
from regtune.errors import UnsupportedModelError
from regtune.registers.surgery import disable_registers, find_registers, mask_registers, require_registers
from tiny import ABSOLUTE, FAMILIES, attentions_of, inputs

HOWS = get_args(How)
N = 3


def means_of(model, given):
    """Mean states over the rows, by depth, taken by the library's own walk."""
    registers, found = require_registers(model), []
    with torch.no_grad(), layer_inputs(model, lambda _, states: found.append(registers.registers_of(states).mean(0))):
        model(**given)
    return torch.stack(found)


def logits(model, given):
    with torch.no_grad():
        output = model(**given)
    return torch.stack([output.start_logits, output.end_logits])[:, given["attention_mask"].bool()]


def knocked(model, given, how, which=None):
    with knocked_out(model, KnockOut(how=how, registers=which), means=means_of(model, given)):
        return logits(model, given)


@pytest.mark.grid
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_knock_out_changes_the_logits_and_leaves_no_trace(family, how):
    model, given = encoder(family, num_registers=N), inputs(family, pad=4)
    before = logits(model, given)
    assert (knocked(model, given, how, (1,)) - before).abs().max() > 1e-6
    assert torch.equal(logits(model, given), before)
    assert require_registers(model).masked == frozenset()


def test_a_knock_out_ends_with_an_exception_too():
    model, given = encoder("bert", num_registers=N), inputs("bert")
    before, means = logits(model, given), means_of(model, given)
    for how in HOWS:
        with pytest.raises(KeyError), knocked_out(model, KnockOut(how=how), means=means):
            raise KeyError(how)
    assert torch.equal(logits(model, given), before)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_masking_all_is_mask_registers(attention):
    model, given = encoder("bert", num_registers=N, attention=attention), inputs("bert", pad=4)
    with mask_registers(model):
        expected = logits(model, given)
    assert torch.equal(knocked(model, given, "mask"), expected)
    with disable_registers(model):
        assert torch.allclose(expected, logits(model, given), atol=1e-9)


def test_masking_one_is_the_model_with_one_register_fewer():
    model, given = encoder("bert", num_registers=N), inputs("bert", pad=4)
    fewer = encoder("bert", num_registers=N - 1)
    with torch.no_grad():
        for name in ("tokens", "positions"):
            getattr(find_registers(fewer), name).copy_(getattr(find_registers(model), name)[[0, 2]])
    assert torch.allclose(knocked(model, given, "mask", (1,)), logits(fewer, given), atol=1e-9)


@pytest.mark.parametrize("placement", ["prefix", "after_cls", "suffix"])
@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_zero_is_a_register_of_zeros(depth, placement):
    model, given = encoder("bert", num_registers=N, depth=depth, placement=placement), inputs("bert", pad=4)
    found = knocked(model, given, "zero", (2,))
    with torch.no_grad():
        registers = find_registers(model)
        registers.tokens[2] = registers.positions[2] = 0
        if registers.deep is not None:
            registers.deep[:, 2] = 0
    assert torch.allclose(found, logits(model, given), atol=1e-12)


@pytest.mark.parametrize("depth", ["input", "every_layer"])
def test_swap_puts_a_copy_of_the_neighbour_in_the_place(depth):
    model, given = encoder("bert", num_registers=N, depth=depth), inputs("bert", pad=4)
    found = knocked(model, given, "swap", (2,))
    with torch.no_grad():
        registers = find_registers(model)
        for parameter in registers.parameters():
            parameter[..., 2, :] = parameter[..., 0, :]
    assert torch.allclose(found, logits(model, given), atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_swap_of_two_identical_registers_changes_nothing(family):
    model, given = encoder(family, num_registers=N), inputs(family, pad=4)
    with torch.no_grad():
        for parameter in find_registers(model).parameters():
            parameter[1] = parameter[2]
    before = logits(model, given)
    assert torch.allclose(knocked(model, given, "swap", (1,)), before, atol=1e-12)
    assert not torch.allclose(knocked(model, given, "swap", (2,)), before, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotating_all_registers_changes_something_only_where_their_order_counts(family):
    model, given = encoder(family, num_registers=N), inputs(family, pad=4)
    unchanged = torch.allclose(knocked(model, given, "swap"), logits(model, given), atol=1e-6)
    assert unchanged == (family in ABSOLUTE)


@pytest.mark.parametrize("family", FAMILIES)
def test_held_at_their_mean_registers_bring_no_news_of_the_input(family):
    model, given = encoder(family, num_registers=N), inputs(family, pad=4)
    means, registers, seen = means_of(model, given), find_registers(model), []

    def look(depth, states):
        seen.append((registers.registers_of(states)[:, [0, 2]] - means[depth, [0, 2]]).abs().max())

    with knocked_out(model, KnockOut(how="mean", registers=(0, 2)), means=means), layer_inputs(model, look):
        logits(model, given)
    assert len(seen) == 4
    assert max(seen[:-1]) < 1e-12
    assert seen[-1] > 1e-6, "what the last layer writes is read by nobody and left as it is"


def test_of_one_window_the_mean_is_the_register_itself():
    model, given = encoder("electra", num_registers=N), inputs("electra", batch=1)
    assert torch.allclose(knocked(model, given, "mean"), logits(model, given), atol=1e-12)


@pytest.mark.parametrize("attention", attentions_of("bert"))
def test_fresh_registers_of_every_layer_are_their_own_mean(attention):
    model = encoder("bert", num_registers=N, depth="every_layer", attention=attention)
    given = inputs("bert", pad=4)
    assert torch.allclose(knocked(model, given, "mean"), logits(model, given), atol=1e-12)


def test_layers_are_visited_in_order_also_where_they_share_weights():
    for family in ("bert", "albert"):
        depths = []
        model = encoder(family, num_registers=N)
        with layer_inputs(model, lambda depth, states, seen=depths: seen.append((depth, states.shape[1]))):
            logits(model, inputs(family))
            logits(model, inputs(family))
        assert depths == 2 * [(depth, 20 + N) for depth in range(4)]


def test_a_model_without_registers_is_refused():
    knock_out = KnockOut(how="zero")
    with pytest.raises(UnsupportedModelError, match="has no registers"), knocked_out(encoder("bert"), knock_out):
        pass
    model = encoder("bert", num_registers=N)
    with (
        disable_registers(model),
        pytest.raises(UnsupportedModelError, match="disabled"),
        knocked_out(model, knock_out),
    ):
        pass
