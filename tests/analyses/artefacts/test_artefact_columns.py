"""Column deviation of attention."""

import numpy as np
import pytest
import torch

import tiny
from analyses.artefacts.artefact_inputs import batch, plant, quiet_model, single_rows
from analyses.attribution.explained import any_model
from regtune.analyses.attention.attention import attention_statistics
from regtune.registers.surgery import split_attention


def column_deviation(model, batches):
    """`[windows, layers]`, and the windows' examples."""
    found = attention_statistics(model, batches)
    return found.per_window["column_deviation"], tuple(found.examples)


@pytest.mark.parametrize("registers", [0, 3])
def test_it_is_the_deviation_of_the_column_means_over_text(registers):
    model = any_model("bert", registers)
    model.set_attn_implementation("eager")
    given = batch(pad=2)
    found, examples = column_deviation(model, [given])
    with torch.no_grad():
        maps = model(given["input_ids"], given["attention_mask"], output_attentions=True).attentions
    for layer, weights in enumerate(maps):
        for row, length in enumerate((12, 7, 20)):
            text = split_attention(weights, registers).text_to_text[row, :, :length, :length].mean(0).numpy()
            text /= text.sum(1, keepdims=True)
            columns = text.mean(0)
            assert found[row, layer] == pytest.approx(columns.std() * length, rel=1e-5)
    assert examples == (0, 1, 2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_and_batches_change_nothing_in_any_family(family):
    model = any_model(family)
    alone = column_deviation(model, single_rows(batch()))[0]
    assert alone == pytest.approx(column_deviation(model, [batch(pad=4)])[0], abs=1e-5)


def test_uniform_attention_has_none_and_a_token_that_receives_all_has_the_most():
    model = quiet_model()
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.attention.self.key.weight.zero_()
            layer.attention.self.query.bias.fill_(5.0)
    assert column_deviation(model, [batch((9,))])[0] == pytest.approx(0, abs=1e-6)
    plant(model.base_model.encoder.layer[1].attention.self.key, lambda keys: keys[:, 4].fill_(50.0))
    found = column_deviation(model, [batch((9,))])[0][0]
    assert found[1] == pytest.approx(np.sqrt(8), rel=1e-4)
    assert found[2] == pytest.approx(0, abs=1e-6)
