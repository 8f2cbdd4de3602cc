"""Rounding to int8: against integers derived on their own, and reversible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny
from analyses.artefacts.artefact_inputs import batch, single_rows
from analyses.attribution.explained import any_model
from regtune.analyses.int8 import (
    activation_ranges,
    int8_verdict,
    quantised,
    round_asymmetric,
    round_symmetric,
)
from regtune.analyses.outcomes import Runs
from regtune.errors import DataError, UnsupportedModelError
from regtune.session import Session


def integers(x, largest):
    """The int8 numbers, derived with NumPy: halves to even, −128 unused."""
    step = largest / 127
    return np.clip(np.rint(x / step), -127, 127).astype(np.int8), step


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(0.1, 60))
def test_rounding_is_that_of_int8_integers(values, largest):
    x = np.array(values)
    whole, step = integers(x, largest)
    found = round_symmetric(torch.tensor(x), torch.tensor(largest, dtype=torch.float64))
    assert found.numpy() == pytest.approx(whole.astype(np.float64) * step, abs=1e-12)


def test_rounding_cuts_at_the_range_is_symmetric_and_keeps_zero():
    x = torch.tensor([-300.0, -127.0, -0.5, 0.0, 0.5, 1.5, 127.0, 300.0])
    found = round_symmetric(x, torch.tensor(127.0))
    assert found.tolist() == [-127, -127, 0, 0, 0, 2, 127, 127]
    assert torch.equal(round_symmetric(x, torch.tensor(0.0)), torch.zeros(8))


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
    x8, x_step = integers(x.numpy(), max(map(abs, ranges[f"{path}.in"])))
    added = x8.astype(np.int64) @ w8.astype(np.int64).T  # as a 32-bit accumulator would
    expected = added * (x_step * np.broadcast_to(w_step, (len(weight), 1)).T) + layer.bias.detach().numpy()
    with quantised(model, ranges, weights=weights), torch.no_grad():
        assert layer(x).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.grid
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("registers", [0, 2])
def test_every_family_is_quantised_and_left_bit_for_bit_as_it_was(family, registers):
    model = any_model(family, registers)
    inputs = {name: value for name, value in batch().items() if name in ("input_ids", "attention_mask")}
    own = {name for name, part in model.named_modules() if "forward" in part.__dict__}
    with torch.no_grad():
        before = model(**inputs).start_logits
        ranges = activation_ranges(model, [batch()])
        assert "qa_outputs.in" in ranges or "classifier.in" in ranges
        with quantised(model, ranges):
            rounded = model(**inputs).start_logits
        with pytest.raises(RuntimeError, match="on purpose"), quantised(model, ranges):
            raise RuntimeError("on purpose")
        assert torch.equal(model(**inputs).start_logits, before)
    assert not torch.equal(rounded, before)
    assert {name for name, part in model.named_modules() if "forward" in part.__dict__} == own


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_ranges_are_of_text_and_registers_without_padding(family, registers):
    model = any_model(family, registers)
    alone = activation_ranges(model, single_rows(batch()))
    padded = activation_ranges(model, [batch(pad=6)])
    assert alone.keys() == padded.keys()
    for path, ends in alone.items():
        assert padded[path] == pytest.approx(ends, rel=1e-6), path


def test_a_range_is_what_was_seen():
    model = any_model("bert")
    seen = []
    hook = model.qa_outputs.register_forward_pre_hook(lambda _, args: seen.append((args[0].min(), args[0].max())))
    ranges = activation_ranges(model, single_rows(batch()))
    hook.remove()
    ends = float(min(low for low, _ in seen)), float(max(high for _, high in seen))
    assert ranges["qa_outputs.in"] == pytest.approx(ends)


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
    coarse = {site: (30 * low, 30 * high) for site, (low, high) in ranges.items()}
    moved = Runs(Session(name="m", model=model, reader=None), [batch(pad=3)], 3)
    assert moved.quantity == "last hidden state"
    assert not moved().any()
    errors, worse = (moved(lambda _, ends=ends: quantised(model, ends)) for ends in (ranges, coarse))
    assert ((errors > 0) & (errors < 0.3)).all()
    assert (worse > 2 * errors).all()


def test_values_already_on_the_grid_are_not_changed():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -4, 3], [0, 1, 2]]))
    x = torch.tensor([[127.0, 5, -6]])
    assert torch.equal(round_symmetric(layer.weight, torch.tensor(127.0)), layer.weight)
    assert torch.equal(round_symmetric(x, torch.tensor(127.0)), x)


def test_bad_use_is_refused():
    model = any_model("bert")
    with pytest.raises(DataError, match="no text to calibrate"):
        activation_ranges(model, [])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        activation_ranges(any_model("bert").train(), [batch()])
    ranges = activation_ranges(model, [batch()])
    with quantised(model, ranges), pytest.raises(UnsupportedModelError, match="already"), quantised(model, ranges):
        pass


def test_activations_that_are_no_numbers_are_refused():
    model = any_model("bert")
    with torch.no_grad():
        model.base_model.encoder.layer[0].output.dense.bias[0] = float("nan")
    with pytest.raises(UnsupportedModelError, match="not finite"):
        activation_ranges(model, [batch()])


# The published scheme


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30), st.floats(-40, 0), st.floats(0.1, 60))
def test_asymmetric_rounding_has_256_levels_and_keeps_zero(values, low, high):
    x = torch.tensor([*values, 0.0], dtype=torch.float64)
    step = (high - low) / 255
    zero = round(-low / step)
    whole = np.clip(np.rint(x.numpy() / step) + zero, 0, 255)
    found = round_asymmetric(x, (low, high))
    assert found.numpy() == pytest.approx((whole - zero) * step, abs=1e-9)
    assert found[-1] == 0


@pytest.mark.grid
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("registers", [0, 2])
def test_the_published_scheme_rounds_every_site_and_leaves_the_model_as_it_was(family, registers):
    model = any_model(family, registers)
    inputs = {name: value for name, value in batch().items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs).start_logits
        ranges = activation_ranges(model, [batch()])
        assert torch.equal(model(**inputs).start_logits, before)
        with quantised(model, ranges, "bondarenko"):
            rounded = model(**inputs).start_logits
        assert torch.equal(model(**inputs).start_logits, before)
    assert not torch.equal(rounded, before)
    assert {"scores.2", "probabilities.2"} <= ranges.keys()
    seen = []
    head = model.get_submodule("qa_outputs" if hasattr(model, "qa_outputs") else "classifier")
    hook = head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with quantised(model, ranges, "bondarenko"), torch.no_grad():
        model(**inputs)
    hook.remove()
    assert torch.equal(seen[0][1], torch.nn.functional.linear(seen[0][0], head.weight, head.bias)), "the head is left"


def test_the_sum_with_the_skip_connection_is_rounded_too():
    model = any_model("bert")
    ranges = activation_ranges(model, [batch()])
    norm = model.base_model.encoder.layer[1].output.LayerNorm
    seen = []
    with quantised(model, ranges, "bondarenko"), torch.no_grad():
        hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(batch()["input_ids"], batch()["attention_mask"])
        hook.remove()
    low, high = ranges["bert.encoder.layer.1.output.LayerNorm.in"]
    levels = seen[0].double() / ((high - low) / 255)
    assert (levels - levels.round()).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("before", "value", "low", "high", "verdict"),
    [
        (0.5, 0.05, 0.02, 0.1, "present"),
        (0.5, 0.005, 0.001, 0.01, "weak"),
        (0.5, 0.05, -0.01, 0.1, "unclear"),
        (0.5, 0.001, -0.001, 0.002, "absent"),
        (0.5, 0.0, 0.0, 3 / 24, "unclear"),  # nothing changed in 24 questions, which could hide a lot
        (None, 0.3, 0.2, 0.6, "present"),
        (None, 0.05, 0.04, 0.1, "absent"),
    ],
)
def test_the_cost_of_eight_bits_by_size_and_interval(before, value, low, high, verdict):
    found = {"metric": "f1_loss", "before": before, "value": value, "low": low, "high": high, "examples": 24}
    assert int8_verdict("linear", found).verdict == verdict
