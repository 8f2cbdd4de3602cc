"""Comparing two models' attention: paired by window, with intervals over texts, and readable tables."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from analyses.attention.attended import analysis_batch, model_of, rows_of
from regtune.analyses.attention.attention import AttentionSettings, attention_statistics
from regtune.analyses.attention.compare import compare_attention
from regtune.analyses.attention.text import attention_text, comparison_text
from regtune.errors import ConfigError


@pytest.fixture(scope="module")
def batch():
    return analysis_batch(rows=6)


@pytest.fixture(scope="module")
def plain(batch):
    return attention_statistics(model_of("bert"), [batch])


@pytest.fixture(scope="module")
def with_registers(batch):
    return attention_statistics(model_of("bert", num_registers=3), [batch])


def made_up(statistics, differences, examples=None):
    """The same statistics with these differences added to a measure in every layer."""
    shifted = statistics.per_window["entropy"] + np.asarray(differences)[:, None]
    changes = {} if examples is None else {"examples": np.asarray(examples)}
    return dataclasses.replace(statistics, per_window={**statistics.per_window, "entropy": shifted}, **changes)


def test_the_difference_is_that_of_the_two_means(plain, with_registers):
    found = compare_attention(plain, with_registers)
    for index, name in enumerate(("cls", "sep", "punctuation", "question", "context", "register")):
        means = [side.by_class["mass"][..., index].mean(1) for side in (plain, with_registers)]
        assert found.difference[f"mass.{name}"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert found.difference["mass.register"] == pytest.approx(with_registers.register_share.sum(-1).mean(1), abs=1e-6)
    assert found.num_registers == (0, 3)
    for name, difference in found.difference.items():
        assert (found.low[name] <= difference + 1e-12).all()
        assert (found.high[name] >= difference - 1e-12).all()


def test_a_model_compared_with_itself_differs_by_nothing(plain):
    found = compare_attention(plain, plain)
    for part in (found.difference, found.low, found.high):
        assert not np.any(list(part.values()))


def test_windows_are_paired_whatever_the_order_of_the_batches(batch, plain):
    model = model_of("bert", num_registers=3)
    forwards = attention_statistics(model, [batch])
    backwards = attention_statistics(model, [rows_of(batch, [5, 3, 4]), rows_of(batch, [2, 0, 1])])
    one, other = compare_attention(plain, forwards), compare_attention(plain, backwards)
    for name in one.difference:
        assert one.low[name] == pytest.approx(other.low[name], abs=1e-6)
        assert one.high[name] == pytest.approx(other.high[name], abs=1e-6)


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says(plain):
    random, covered = np.random.default_rng(0), 0
    many = 60
    base = dataclasses.replace(
        plain,
        windows=many,
        examples=np.arange(many),
        tokens=np.full(many, 20),
        per_window={"entropy": np.zeros((many, 1))},
    )
    for _ in range(200):
        found = compare_attention(base, made_up(base, random.exponential(1.0, many)), resamples=400)
        covered += found.low["entropy"][0] <= 1.0 <= found.high["entropy"][0]
    assert 0.88 <= covered / 200 <= 0.98


def test_windows_of_one_text_are_drawn_together(plain):
    differences = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    apart = compare_attention(plain, made_up(plain, differences))
    together_before = made_up(plain, np.zeros(6), [0, 0, 0, 1, 1, 1])
    together = compare_attention(together_before, made_up(plain, differences, [0, 0, 0, 1, 1, 1]))
    assert together.examples == 2
    assert together.windows == 6
    assert together.high["entropy"][0] == pytest.approx(1.0, abs=1e-6)
    assert apart.high["entropy"][0] < 1.0


def test_other_texts_settings_or_depths_are_refused(batch, plain):
    model = model_of("bert")
    with pytest.raises(ConfigError, match=r"different windows \(6 and 5\)"):
        compare_attention(plain, attention_statistics(model, [rows_of(batch, [0, 1, 2, 3, 4])]))
    with pytest.raises(ConfigError, match="settings differ"):
        compare_attention(plain, attention_statistics(model, [batch], settings=AttentionSettings(queries="content")))
    with pytest.raises(ConfigError, match="layers differ: 3 and 2"):
        compare_attention(plain, dataclasses.replace(plain, layers=2))
    with pytest.raises(ConfigError, match="resamples=10"):
        compare_attention(plain, plain, resamples=10)
    with pytest.raises(ConfigError, match=r"confidence=1\.0"):
        compare_attention(plain, plain, confidence=1.0)


def test_the_comparison_can_be_written_down(plain, with_registers):
    found = compare_attention(plain, with_registers)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["measures"]["mass_text.cls"]["difference"] == found.difference["mass_text.cls"].tolist()
    assert read["num_registers"] == [0, 3]


def test_the_table_shows_the_numbers(with_registers):
    lines = attention_text(with_registers).splitlines()
    assert lines[0].startswith("Attention of 6 windows: 3 layers, 4 heads, 3 registers.")
    header = next(index for index, line in enumerate(lines) if line.startswith("layer"))
    first = lines[header + 1].split()
    assert first[0] == "0"
    assert float(first[1]) == pytest.approx(100 * with_registers.by_class["mass"][0, :, 0].mean(), abs=0.06)
    assert float(first[7]) == pytest.approx(100 * with_registers.single["entropy"][0].mean(), abs=0.06)
    shares = lines[lines.index("Share of each register:") + 2].split()
    assert float(shares[3]) == pytest.approx(100 * with_registers.register_share[0, :, 2].mean(), abs=0.006)
    assert max(map(len, lines)) <= 132


def test_a_model_without_registers_has_no_table_of_them(plain):
    assert "Share of each register" not in attention_text(plain)


def test_the_comparisons_table_shows_the_change_with_its_interval(plain, with_registers):
    found = compare_attention(plain, with_registers)
    lines = comparison_text(found).splitlines()
    row = next(line for line in lines if line.startswith("mass_text.cls")).split()
    assert float(row[4]) == pytest.approx(100 * found.difference["mass_text.cls"][0], abs=0.006)
    assert row[5].startswith("[")
