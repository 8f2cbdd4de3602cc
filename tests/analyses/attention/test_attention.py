"""Attention statistics of whole models: the numbers found by hand, for every family, batch, padding and kernel."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

import tiny
from analyses.attention.attended import analysis_batch, by_hand, model_of, rows_of
from analyses.attribution.explained import DECODERS, decoder
from regtune.analyses.attention import attention as attention_module
from regtune.analyses.attention.attention import (
    SINGLE,
    AttentionSettings,
    OutputNorms,
    attention_statistics,
)
from regtune.analyses.attention.tap import attention_tap, registers_first
from regtune.errors import ConfigError, DataError, UnsupportedModelError
from regtune.registers.surgery import disable_registers, find_registers, mask_registers

FAMILIES = tuple(tiny.FAMILIES)
PLACED = [
    (family, count, placement)
    for family in FAMILIES
    for count, placement in [
        (0, "prefix"),
        (3, "prefix"),
        (3, "suffix"),
        *([(3, "after_cls")] if family in tiny.ABSOLUTE else []),
    ]
]


def everything(found):
    """Every number of a result by name."""
    return {**found.means, "uniform": found.uniform}


def assert_same(one, other, tolerance=1e-10):
    for name, value in everything(one).items():
        assert value == pytest.approx(everything(other)[name], abs=tolerance), name


def maps_and_norms(model, batch):
    """Eager attention maps `[layers, batch, heads, total, total]`, registers first, and |f(x)| beside them."""
    norms, written = [], OutputNorms(model)

    def keep(_layer, _weights, values, module):
        norms.append(registers_first(written(module, values).transpose(1, 2), find_registers(model), 1).transpose(1, 2))

    names = ("input_ids", "attention_mask")
    inputs = {name: batch[name] for name in names}
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
        with attention_tap(model, keep):
            model(**inputs)
    return torch.stack(maps), torch.stack(norms)


@pytest.mark.grid
@pytest.mark.parametrize(("family", "count", "placement"), PLACED)
def test_a_models_statistics_are_those_of_its_attention_maps_by_hand(family, count, placement):
    # Eager ModernBERT in float64 gives NaN where padding is longer than its local window (4 here).
    model, batch = model_of(family, num_registers=count, placement=placement), analysis_batch(pad=3)
    maps, norms = maps_and_norms(model, batch)
    expected = [[], [], []]
    for row in range(3):
        classes = [5] * count + batch["token_classes"][row].tolist()
        for layer in range(3):
            expected[layer].append(
                [
                    by_hand(maps[layer, row, head].numpy(), norms[layer, row, head].numpy(), classes, range(count))
                    for head in range(4)
                ]
            )
    found = everything(attention_statistics(model, [batch]))
    found.pop("uniform")
    found.pop("column_deviation")
    for name, value in found.items():
        means = [[np.mean([row[head][name] for row in rows], 0) for head in range(4)] for rows in expected]
        assert value == pytest.approx(np.array(means), abs=1e-6 if family == "modernbert" else 1e-9), name


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in tiny.EAGER_ONLY])
def test_sdpa_gives_the_numbers_of_eager_attention(family, count):
    batch = analysis_batch()
    eager, sdpa = (
        attention_statistics(model_of(family, num_registers=count, attention=kind), [batch])
        for kind in ("eager", "sdpa")
    )
    assert_same(eager, sdpa, 1e-6 if family == "modernbert" else 1e-10)
    assert eager.means["entropy"].std() > 0.01


@pytest.mark.grid
@pytest.mark.parametrize(("family", "count", "placement"), PLACED)
def test_padding_the_batch_size_and_the_order_change_nothing(family, count, placement):
    attention = "eager" if family in tiny.EAGER_ONLY else "sdpa"
    model, batch = model_of(family, num_registers=count, placement=placement, attention=attention), analysis_batch()
    together = attention_statistics(model, [batch])
    alone = attention_statistics(
        model, [rows_of(batch, [2]), rows_of(batch, [0]), rows_of(batch, [1], batch["input_ids"].shape[1] - 5)]
    )
    tolerance = 1e-6 if family == "modernbert" else 1e-10
    assert_same(together, alone, tolerance)
    assert alone.examples.tolist() == [2, 0, 1]
    for name, rows in together.per_window.items():
        assert rows[[2, 0, 1]] == pytest.approx(alone.per_window[name], abs=1e-5), name


def test_left_padding_changes_nothing_where_positions_are_distances():
    model = model_of("deberta-v2", num_registers=2)
    right = rows_of(analysis_batch(), [1])
    left = {name: value.roll(5, 1) if value.dim() == 2 else value for name, value in right.items()}
    assert_same(attention_statistics(model, [right]), attention_statistics(model, [left]))


def test_masses_sum_to_one_and_registers_share_their_class():
    found = attention_statistics(model_of("bert", num_registers=3), [analysis_batch()])
    for name in ("mass", "mass_text", "value_weighted_mass"):
        assert found.means[name].sum(-1) == pytest.approx(np.ones((3, 4)))
    assert found.uniform.sum() == pytest.approx(1)
    assert found.means["register_share"].sum(-1) == pytest.approx(found.means["mass"][..., 5])
    assert found.means["register_attention_out"].sum(-1) == pytest.approx(np.ones((3, 4, 3)))
    assert found.means["mass_text"][..., 5] == pytest.approx(np.zeros((3, 4)))


def test_disabled_registers_give_the_statistics_of_the_plain_model():
    plain, with_registers = model_of("bert"), model_of("bert", num_registers=3)
    with disable_registers(with_registers):
        found = attention_statistics(with_registers, [analysis_batch()])
    assert found.num_registers == 0
    assert_same(found, attention_statistics(plain, [analysis_batch()]))


def test_masked_registers_get_nothing_and_count_as_no_key():
    plain, with_registers = model_of("bert"), model_of("bert", num_registers=3)
    with mask_registers(with_registers):
        found = attention_statistics(with_registers, [analysis_batch()])
    expected = attention_statistics(plain, [analysis_batch()])
    assert found.means["register_share"] == pytest.approx(np.zeros((3, 4, 3)))
    for name in SINGLE:
        assert found.means[name] == pytest.approx(expected.means[name], abs=1e-9), name


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert", "deberta-v2", "mpnet", "albert"])
def test_norms_are_those_of_what_a_head_alone_writes(family):
    model, batch = model_of(family), analysis_batch()
    norms, seen = OutputNorms(model), []

    def compare(_layer, _weights, values, module):
        projection = norms._projection[id(module)]
        nothing = torch.zeros(*values.shape[:1], values.shape[2], values.shape[1] * values.shape[3]).double()
        for head in range(4):
            alone = nothing.clone().unflatten(-1, (4, -1))
            alone[:, :, head] = values[:, head]
            written = projection(alone.flatten(2)) - projection(nothing)
            assert torch.allclose(norms(module, values)[:, head], written.norm(dim=-1), rtol=1e-9, atol=1e-12)
        seen.append(module)

    with torch.no_grad(), attention_tap(model, compare):
        model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    assert len(seen) == 3


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_see_only_what_came_before(family):
    model, batch = decoder(family), analysis_batch()
    found = attention_statistics(model, [batch])
    eager = attention_statistics(decoder(family, "eager"), [batch])
    assert_same(found, eager, 1e-6)
    assert (found.means["entropy"] <= 1 + 1e-9).all()
    alone = attention_statistics(model, [rows_of(batch, [1], 15), rows_of(batch, [0, 2])])
    assert_same(found, alone, 1e-6)


def test_queries_with_content_leave_out_what_special_tokens_look_at():
    model, batch = model_of("bert"), analysis_batch()
    text, content = (
        attention_statistics(model, [batch], settings=AttentionSettings(queries=asked)) for asked in ("text", "content")
    )
    maps, norms = maps_and_norms(model, batch)
    expected = np.mean(
        [
            by_hand(
                maps[0, row, 0].numpy(),
                norms[0, row, 0].numpy(),
                batch["token_classes"][row].tolist(),
                (),
                queries="content",
            )["mass"]
            for row in range(3)
        ],
        0,
    )
    assert content.means["mass"][0, 0] == pytest.approx(expected)
    assert abs(content.means["mass"] - text.means["mass"]).max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_nearly_the_same(dtype):
    batch = analysis_batch()
    exact = attention_statistics(tiny.tiny_model("bert", attention="sdpa").double(), [batch])
    found = attention_statistics(tiny.tiny_model("bert", attention="sdpa").to(dtype), [batch])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name in ("mass", "value_weighted_mass"):
        assert found.means[name] == pytest.approx(exact.means[name], abs=tolerance)
    assert found.means["entropy"] == pytest.approx(exact.means["entropy"], abs=tolerance)


# Memory


def test_a_layers_weights_are_gone_before_the_next_layers_come(monkeypatch):
    alive, most = weakref.WeakSet(), []
    measure = attention_module.measure_layer

    def watch(weights, *rest):
        alive.add(weights)
        most.append(len(alive))
        return measure(weights, *rest)

    monkeypatch.setattr(attention_module, "measure_layer", watch)
    attention_statistics(model_of("bert", num_registers=2, attention="sdpa"), [analysis_batch()] * 4)
    assert len(most) == 12
    assert max(most) == 1


def test_what_is_kept_grows_by_130_bytes_a_window_and_layer():
    model = model_of("bert", num_registers=2, attention="sdpa")

    def kept(batches):
        found = attention_statistics(model, batches)
        arrays = [*everything(found).values(), *found.per_window.values(), found.examples, found.tokens]
        return sum(array.nbytes for array in arrays)

    few, many = kept([analysis_batch()]), kept([analysis_batch()] * 5)
    assert (many - few) / 12 <= 132 * 3 + 16


# What comes out


def test_windows_count_alike_and_the_per_window_means_are_the_means():
    found = attention_statistics(model_of("bert", num_registers=3), [analysis_batch()])
    assert found.per_window["mass"][..., 0].mean(0) == pytest.approx(found.means["mass"][..., 0].mean(1), abs=1e-6)
    assert found.per_window["entropy_text"].mean(0) == pytest.approx(found.means["entropy_text"].mean(1), abs=1e-6)
    assert found.tokens.tolist() == [20, 15, 20]


def test_the_model_is_left_as_it_was():
    model, batch = model_of("bert", num_registers=2, attention="sdpa"), analysis_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = model(**inputs).start_logits
    attention_statistics(model, [batch])
    after = model(**inputs).start_logits
    assert torch.equal(before, after)
    after.sum().backward()  # nothing was left behind that can't be trained through


# Bad input


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(UnsupportedModelError, match="training mode"):
        attention_statistics(model_of("bert").train(), [analysis_batch()])


def test_no_batch_is_refused():
    with pytest.raises(DataError, match="not one word"):
        attention_statistics(model_of("bert"), [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_classes": None}, "needs token_classes"),
        ({"token_classes": torch.full((3, 19), 4, dtype=torch.int8)}, r"token_classes is \[3, 19\]"),
        ({"attention_mask": torch.ones(3, 20, dtype=torch.long)}, "disagree about what is padding"),
        ({"token_classes": torch.where(torch.arange(20) == 4, 5, analysis_batch()["token_classes"])}, "hold registers"),
    ],
)
def test_batches_that_cannot_be_right_are_refused(change, message):
    batch = {name: value for name, value in {**analysis_batch(), **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        attention_statistics(model_of("bert"), [batch])


def test_rows_without_a_word_are_left_out():
    batch = analysis_batch()
    batch["token_classes"][1] = batch["token_classes"][1].clamp(max=1)
    assert attention_statistics(model_of("bert"), [batch]).examples.tolist() == [0, 2]


def test_attention_that_is_no_number_is_refused():
    model = model_of("bert")
    with torch.no_grad():
        model.base_model.encoder.layer[1].attention.self.query.weight.fill_(float("nan"))
    with pytest.raises(UnsupportedModelError, match="layer 1 is not a number"):
        attention_statistics(model, [analysis_batch()])


def test_a_model_of_which_no_layer_can_be_read_is_refused():
    with pytest.raises(UnsupportedModelError, match="0 layers"):
        attention_statistics(tiny.tiny_model("bert", num_hidden_layers=0), [analysis_batch()])
