"""Rounding to int8: against integers derived on their own, and reversible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny
from analyses.artefacts.artefact_inputs import batch, single_rows
from analyses.attribution.explained import any_model, decoder
from regtune.analyses.artefacts.quantise import (
    activation_ranges,
    linear_layers,
    quantised,
    relative_errors,
    round_to_int8,
)
from regtune.errors import ConfigError, DataError, UnsupportedModelError


def integers(x, largest):
    """The int8 numbers, derived with NumPy: halves to even, −128 unused."""
    step = largest / 127
    return np.clip(np.rint(x / step), -127, 127).astype(np.int8), step


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(0.1, 60))
def test_rounding_is_that_of_int8_integers(values, largest):
    x = np.array(values)
    whole, step = integers(x, largest)
    found = round_to_int8(torch.tensor(x), torch.tensor(largest, dtype=torch.float64))
    assert found.numpy() == pytest.approx(whole.astype(np.float64) * step, abs=1e-12)


def test_rounding_cuts_at_the_range_is_symmetric_and_keeps_zero():
    x = torch.tensor([-300.0, -127.0, -0.5, 0.0, 0.5, 1.5, 127.0, 300.0])
    found = round_to_int8(x, torch.tensor(127.0))
    assert found.tolist() == [-127, -127, 0, 0, 0, 2, 127, 127]
    assert torch.equal(round_to_int8(x, torch.tensor(0.0)), torch.zeros(8))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("weights", ["tensor", "channel"])
def test_a_layer_computes_with_integers(family, weights):
    """One layer inside the context equals integer arithmetic on its own input, scaled back."""
    model = any_model(family)
    path = "bert.encoder.layer.1.intermediate.dense" if family == "bert" else "transformer.h.1.mlp.c_fc"
    layer = model.get_submodule(path)
    ranges = activation_ranges(model, [batch()])
    x = torch.randn(5, 32, dtype=torch.float64)
    weight = layer.weight.detach().numpy() if family == "bert" else layer.weight.detach().numpy().T
    ends = abs(weight).max() if weights == "tensor" else abs(weight).max(axis=1, keepdims=True)
    w8, w_step = integers(weight, ends)
    x8, x_step = integers(x.numpy(), ranges[path])
    added = x8.astype(np.int64) @ w8.astype(np.int64).T  # as a 32-bit accumulator would
    expected = added * (x_step * np.broadcast_to(w_step, (len(weight), 1)).T) + layer.bias.detach().numpy()
    with quantised(model, ranges, weights=weights), torch.no_grad():
        assert layer(x).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("registers", [0, 2])
def test_every_family_is_quantised_and_left_bit_for_bit_as_it_was(family, registers):
    model = any_model(family, registers)
    inputs = {name: value for name, value in batch().items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs).start_logits
        ranges = activation_ranges(model, [batch()])
        assert set(ranges) <= set(linear_layers(model))
        assert "qa_outputs" in ranges or "classifier" in ranges
        with quantised(model, ranges):
            rounded = model(**inputs).start_logits
        with pytest.raises(RuntimeError, match="on purpose"), quantised(model, ranges):
            raise RuntimeError("on purpose")
        assert torch.equal(model(**inputs).start_logits, before)
    assert not torch.equal(rounded, before)
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_ranges_are_of_text_and_registers_without_padding(family, registers):
    model = any_model(family, registers)
    alone = activation_ranges(model, single_rows(batch()))
    padded = activation_ranges(model, [batch(pad=6)])
    assert alone.keys() == padded.keys()
    for path, largest in alone.items():
        assert padded[path] == pytest.approx(largest, rel=1e-6), path


def test_a_range_is_the_largest_input_seen():
    model = any_model("bert")
    seen = []
    hook = model.qa_outputs.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max()))
    ranges = activation_ranges(model, single_rows(batch()))
    hook.remove()
    assert ranges["qa_outputs"] == pytest.approx(float(max(seen)))


def test_tied_weights_stay_the_embeddings_they_are():
    model = tiny.tiny_model("bert", "masked-lm")
    words = model.get_input_embeddings().weight.detach().clone()
    ranges = activation_ranges(model, [batch()])
    with quantised(model, ranges), torch.no_grad():
        assert torch.equal(model.get_input_embeddings().weight, words)
        model(batch()["input_ids"])
    assert torch.equal(model.get_input_embeddings().weight, words)


def test_errors_are_those_of_the_states_and_one_large_input_raises_them():
    model = any_model("bert")
    ranges = activation_ranges(model, [batch()])
    errors = relative_errors(model, [batch(pad=3)], ranges)
    assert set(errors) == {0, 1, 2}
    assert all(0 < error < 0.3 for error in errors.values())
    coarse = {path: 30 * largest for path, largest in ranges.items()}
    worse = relative_errors(model, [batch()], coarse)
    assert all(worse[example] > 2 * errors[example] for example in errors)


def test_values_already_on_the_grid_are_not_changed():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -4, 3], [0, 1, 2]]))
    x = torch.tensor([[127.0, 5, -6]])
    assert torch.equal(round_to_int8(layer.weight, torch.tensor(127.0)), layer.weight)
    assert torch.equal(round_to_int8(x, torch.tensor(127.0)), x)


def test_bad_use_is_refused():
    model = any_model("bert")
    with pytest.raises(DataError, match="no text to calibrate"):
        activation_ranges(model, [])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        activation_ranges(any_model("bert").train(), [batch()])
    ranges = activation_ranges(model, [batch()])
    with pytest.raises(ConfigError, match="another model"), quantised(decoder("gpt2"), ranges):
        pass
    with quantised(model, ranges), pytest.raises(UnsupportedModelError, match="already"), quantised(model, ranges):
        pass


def test_activations_that_are_no_numbers_are_refused():
    model = any_model("bert")
    with torch.no_grad():
        model.base_model.encoder.layer[0].output.dense.bias[0] = float("nan")
    with pytest.raises(UnsupportedModelError, match="not finite"):
        activation_ranges(model, [batch()])
