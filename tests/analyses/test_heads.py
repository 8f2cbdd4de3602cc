"""Heads: what a knock-out takes away, and that nothing of it stays."""

import copy

import pytest
import torch

from analyses.attribution.explained import encoder
from regtune.analyses.heads import knocked_out_head
from tiny import inputs


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (2, 0)])
def test_a_head_that_is_knocked_out_is_one_whose_columns_of_the_projection_are_zero(layer, head):
    model, given = encoder("bert", num_registers=2), inputs("bert")
    without = copy.deepcopy(model)
    projection = without.bert.encoder.layer[layer].attention.output.dense
    width = projection.weight.shape[1] // model.config.num_attention_heads
    with torch.no_grad():
        plain = model(**given).start_logits
        projection.weight[:, head * width : (head + 1) * width] = 0
        expected = without(**given).start_logits
        with knocked_out_head(model, layer, head):
            found = model(**given).start_logits
        assert torch.equal(model(**given).start_logits, plain)
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(found, plain, atol=1e-4)
