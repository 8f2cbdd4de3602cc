"""The measures of one layer, against the definitions in plain loops and against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.attention.attended import by_hand
from regtune.analyses.attention.measures import AttentionSettings, measure_layer, places_of
from regtune.errors import ConfigError

TEXT = [0, 3, 3, 1, 4, 2, 4, 4, 1]


def random_weights(batch, heads, classes, *, causal=False, seed=0, sharpness=3.0):
    """Softmax of random scores in which padding is hidden."""
    generator = torch.Generator().manual_seed(seed)
    total = classes.shape[1]
    scores = sharpness * torch.randn(batch, heads, total, total, generator=generator, dtype=torch.float64)
    scores = scores.masked_fill((classes < 0)[:, None, None, :], -torch.inf)
    if causal:
        scores = scores.masked_fill(~torch.ones(total, total, dtype=torch.bool).tril(), -torch.inf)
        scores[..., 0, 0] = 0.0  # a first query that is padding must see something
    return scores.softmax(-1)


def measured(weights, norms, classes, registers, *, causal=False, **choices):
    asked = AttentionSettings(**choices)
    places = places_of(classes.to(torch.int8), registers, queries=asked.queries, causal=causal, dtype=weights.dtype)
    return measure_layer(weights, norms, places, asked)


def one(weights, classes, registers=(), norms=None, **choices):
    """One head of one window."""
    weights = torch.as_tensor(weights, dtype=torch.float64)[None, None]
    norms = torch.ones(weights.shape[:3], dtype=torch.float64) if norms is None else torch.tensor(norms)[None, None]
    columns = torch.tensor([list(registers)], dtype=torch.long)
    found = measured(weights, norms.double(), torch.tensor([classes]), columns, **choices)
    return {name: value[0, 0].numpy() for name, value in found.items()}


@pytest.mark.parametrize("queries", ["text", "content"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("registers", [(), (0, 1, 2), (1, 2, 3), (6, 7, 8)])
def test_every_measure_is_its_definition_in_loops(queries, causal, registers):
    random = torch.Generator().manual_seed(3)
    rows = []
    for pad in (0, 2):
        text = torch.tensor(
            [0, *torch.randint(2, 5, (3,), generator=random), 1, *torch.randint(2, 5, (5,), generator=random)]
        )
        text[len(text) - pad :] = -1
        rows.append(
            torch.cat(
                [text[: min(registers, default=0)], torch.full((len(registers),), 5), text[min(registers, default=0) :]]
            )
        )
    classes = torch.stack(rows)
    columns = torch.tensor(registers, dtype=torch.long).expand(2, -1)
    weights = random_weights(2, 3, classes, causal=causal)
    norms = torch.rand(weights.shape[:3], generator=random, dtype=torch.float64) + 0.1
    found = measured(weights, norms, classes, columns, causal=causal, queries=queries)
    for row in range(2):
        for head in range(3):
            expected = by_hand(
                weights[row, head].numpy(),
                norms[row, head].numpy(),
                classes[row].tolist(),
                registers,
                queries=queries,
                causal=causal,
            )
            assert set(found) == set(expected)
            for name, value in expected.items():
                assert found[name][row, head].numpy() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("registers", [0, 2])
def test_uniform_attention_has_entropy_one_no_lift_no_sink_and_the_mass_of_each_classs_share(registers):
    classes = [5] * registers + TEXT
    total = len(classes)
    found = one(np.full((total, total), 1 / total), classes, range(registers))
    assert found["entropy"] == pytest.approx(1)
    assert found["entropy_text"] == pytest.approx(1)
    assert found["sink_lift"] == pytest.approx(1)
    assert found["sink_rate"] == 0
    assert found["idle"] == 0
    assert found["write"] == pytest.approx(1)
    assert found["mass"] == pytest.approx(np.bincount(classes, minlength=6) / total)
    assert found["mass_text"] == pytest.approx(np.bincount(TEXT, minlength=6) / len(TEXT))


def test_uniform_causal_attention_has_entropy_one_and_no_lift():
    weights = np.tril(np.ones((9, 9))) / np.arange(1, 10)[:, None]
    found = one(weights, TEXT, causal=True)
    assert found["entropy"] == pytest.approx(1)
    assert found["sink_lift"] == pytest.approx(1)


def test_a_token_that_only_the_last_queries_see_is_no_sink():
    weights = np.eye(9)
    assert one(weights, TEXT, causal=True)["sink_rate"] == 0  # every token sees itself alone
    assert one(np.eye(9)[[4] * 9], TEXT)["sink_rate"] == 1


def test_a_single_key_is_a_sink_with_entropy_zero_and_a_lift_of_all_keys():
    weights = np.zeros((9, 9))
    weights[:, 3] = 1
    found = one(weights, TEXT)
    assert found["entropy"] == pytest.approx(0, abs=1e-15)
    assert found["sink_rate_by_class"].tolist() == [0, 1, 0, 0, 0, 0]
    assert found["sink_lift"] == pytest.approx(9)
    assert found["mass"] == pytest.approx([0, 1, 0, 0, 0, 0], abs=1e-12)


def test_a_sink_that_is_shared_with_a_register_is_still_one_among_the_text():
    alone, shared = np.full((9, 9), 0.6 / 8), np.full((10, 10), 0.6 / 8)
    alone[:, 0], shared[:, :2] = 0.4, 0.2
    before, after = one(alone, TEXT), one(shared, [5, *TEXT], [0])
    assert (before["sink_rate"], before["sink_rate_text"]) == (1, 1)
    assert (after["sink_rate"], after["sink_rate_text"]) == (0, 0)
    assert one(shared, [5, *TEXT], [0], sink_above=0.22)["sink_rate_text"] == 1


def test_a_sink_receives_more_than_the_threshold():
    weights = np.full((9, 9), 0.75 / 8)
    weights[:, 0] = 0.25
    assert one(weights, TEXT, sink_above=0.2501)["sink_rate"] == 0
    assert one(weights, TEXT, sink_above=0.2499)["sink_rate"] == 1


@settings(max_examples=40, deadline=None)
@given(taken=st.floats(1e-6, 1 - 1e-6), registers=st.integers(1, 4), seed=st.integers(0, 100))
def test_registers_that_take_from_all_text_alike_leave_the_text_measures_alone(taken, registers, seed):
    weights = random_weights(1, 1, torch.tensor([TEXT]), seed=seed)[0, 0].numpy()
    wide = np.full((9 + registers, 9 + registers), taken / registers)
    wide[:, registers:] = 0
    wide[registers:, registers:] = (1 - taken) * weights
    wide[:registers] = 1 / (9 + registers)
    wide[registers:, :registers] = taken / registers
    before, after = one(weights, TEXT), one(wide, [5] * registers + TEXT, range(registers))
    for name in ("mass_text", "entropy_text", "sink_lift_text", "sink_rate_text"):
        assert after[name] == pytest.approx(before[name], abs=1e-9)
    assert after["mass"] == pytest.approx([*((1 - taken) * before["mass"][:5]), taken], abs=1e-12)
    assert after["register_share"] == pytest.approx([taken / registers] * registers)


def test_what_a_register_leaves_is_measured_even_below_the_rounding_of_one():
    weights = random_weights(1, 1, torch.tensor([TEXT]))[0, 0].float()
    left = 1e-12
    wide = torch.zeros(1, 1, 10, 10)
    wide[..., 1:, 1:] = left * weights
    wide[..., 0] = 1.0
    found = measured(wide, torch.ones(1, 1, 10), torch.tensor([[5, *TEXT]]), torch.tensor([[0]]))
    alone = one(weights, TEXT)
    assert found["entropy_text"].item() == pytest.approx(float(alone["entropy_text"]), abs=1e-6)
    assert found["mass_text"][0, 0].numpy() == pytest.approx(alone["mass_text"], abs=1e-6)


def test_a_head_is_idle_if_it_looks_at_nothing_with_content_and_reads_little_there():
    weights = np.full((9, 9), 0.05 / 8)
    weights[:, 3] = 0.95
    small = [1.0] * 9
    small[3] = 0.1
    assert one(weights, TEXT, norms=small)["idle"] == 1
    assert one(weights, TEXT)["idle"] == 0  # it reads as much from [SEP] as from a word
    assert one(np.full((9, 9), 1 / 9), TEXT, norms=small)["idle"] == 0
    assert one(weights, TEXT, norms=small, idle_mass=0.99)["idle"] == 0


def test_value_weighted_mass_counts_what_is_read_not_how_hard_is_looked():
    weights = np.full((9, 9), 0.1)
    weights[:, 0] = 0.2
    norms = [0.0] + [1.0] * 8
    found = one(weights, TEXT, norms=norms)
    assert found["mass"][0] == pytest.approx(0.2)
    assert found["value_weighted_mass"][0] == 0
    assert found["value_weighted_mass"].sum() == pytest.approx(1)


def test_weights_that_underflow_add_no_entropy_and_no_nan():
    weights = torch.zeros(1, 1, 9, 9)
    weights[..., 2] = 1.0
    weights[..., 5] = 1e-42
    found = measured(weights, torch.ones(1, 1, 9), torch.tensor([TEXT]), torch.zeros(1, 0, dtype=torch.long))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert abs(found["entropy"].item()) < 1e-30


def test_a_text_of_two_words_has_its_entropy_over_ln_2():
    found = one([[0.9, 0.1], [0.5, 0.5]], [4, 4])
    expected = (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2) + 1) / 2
    assert found["entropy"] == pytest.approx(expected)


def test_impossible_settings_are_refused_with_their_value():
    wrong = AttentionSettings()
    object.__setattr__(wrong, "queries", "contents")  # the tests' type checker would refuse it first
    with pytest.raises(ConfigError, match="queries='contents' must be one of text, content"):
        wrong.__post_init__()
    with pytest.raises(ConfigError, match=r"sink_above=1.5"):
        AttentionSettings(sink_above=1.5)
    with pytest.raises(ConfigError, match=r"idle_mass=0"):
        AttentionSettings(idle_mass=0.0)
    with pytest.raises(ConfigError, match=r"idle_write=-1"):
        AttentionSettings(idle_write=-1.0)
