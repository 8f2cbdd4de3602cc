"""Scores against the strength of noise: which sets are one curve, what is compared, and what is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regtune.interfaces import Block
from regtune.records import read_json, write_json
from regtune.report.collect import collect
from regtune.report.figures import drawn
from regtune.report.robustness import curves_of, robustness_blocks
from regtune.report.scores import Settings, find_baseline
from regtune.report.sections import make_section
from regtune.tasks.lm import PERPLEXITY
from regtune.tasks.qa.task import F1
from report.synthetic import config_of, write_cell, write_sweep

CLEAN = "data/xquad.en.json.gz"
SETS = (
    CLEAN,
    f"noise:keyboard=0.3:{CLEAN}",
    f"noise:keyboard=0.1:{CLEAN}",
    f"noise:speech=0.5,in=question:{CLEAN}",
    "data/asr.json.gz",
    "data/xquad.de.json.gz",
    f"noise:keyboard=0.1,words=0.2:{CLEAN}",
)
NOISY, CLOSE = "xquad.en-keyboard-0.3", "xquad.en-keyboard-0.1"


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """N = 16 loses nothing where the noise is strong, and is like N = 0 elsewhere."""
    folder = tmp_path_factory.mktemp("noise")
    helped, lost = {NOISY: 0.35, CLOSE: 0.0}, {NOISY: -0.2, CLOSE: -0.1}
    write_sweep(folder, counts=(0, 16), effects={0: lost, 16: helped}, sets=SETS, questions=150)
    return collect(folder).groups[0]


@pytest.fixture(scope="module")
def blocks(group) -> list[Block]:
    return robustness_blocks(group, find_baseline(group), F1, Settings(resamples=600))


def test_one_set_at_several_strengths_is_a_curve_with_others_sets_of_the_same_examples_beside_it(group):
    keyboard, speech = curves_of(group)
    assert keyboard.title == "keyboard on xquad.en"
    assert list(keyboard.strengths.items()) == [("xquad.en", 0.0), (CLOSE, 0.1), (NOISY, 0.3)]
    assert keyboard.beside == ("asr",)  # not the German questions, which are no noise
    assert speech.title == "speech in question on xquad.en"
    assert list(speech.strengths.values()) == [0.0, 0.5]


def test_a_set_of_other_examples_is_not_beside_the_curve(tmp_path):
    for count in (0, 4):
        for seed in (0, 1):
            config = config_of("registers" if count else "baseline", count, seed, sets=SETS[:2])
            write_cell(tmp_path, config, questions=20)
            config = config_of("registers" if count else "baseline", count, seed, sets=("data/asr.json.gz",))
            write_cell(tmp_path / "more", config, questions=20, prefix="r")
    (curve,) = curves_of(collect(tmp_path).groups[0])
    assert curve.beside == ()


def test_arms_are_compared_at_every_strength_and_corrected_together(blocks):
    figure, table = blocks[:2]
    assert (figure.kind, table.kind) == ("figure", "table")
    rows = {(row[0], row[2]): row for row in table.rows}
    assert list(dict.fromkeys(row[0] for row in table.rows)) == ["xquad.en", CLOSE, NOISY, "asr"]
    assert rows[NOISY, "registers, N = 16"][-1] == "helps"
    assert rows["xquad.en", "registers, N = 16"][-1] != "helps"
    assert rows[NOISY, "baseline"][1] == 0.3
    assert rows["asr", "baseline"][1] is None
    for (name, arm), row in rows.items():
        whole = rows["xquad.en", arm][3]
        assert row[4] == (None if name == "xquad.en" else pytest.approx(row[3] - whole))


def test_intervals_are_wider_than_those_of_one_set_alone(group, blocks):
    from regtune.report.scores import family

    baseline = find_baseline(group)
    arm = next(one for one in group.arms if one != baseline)
    alone = family(group, baseline, [arm], NOISY, F1, Settings(resamples=600)).comparisons[arm]
    row = next(row for row in blocks[1].rows if row[0] == NOISY and row[2] == arm.label)
    low, high = row[6]
    assert low < alone.simultaneous_interval[0]
    assert high > alone.simultaneous_interval[1]


def test_the_figure_is_drawn_and_says_its_means(blocks):
    svg = drawn(blocks[0], "x")
    assert "baseline" in svg
    assert "registers, N = 16" in svg
    assert "asr" in svg
    assert "at 0.3" in blocks[0].text


def test_the_section_has_the_curves_and_one_without_noise_has_none(group, tmp_path):
    part = make_section(group, Settings(resamples=600)).blocks("Robustness to noise")
    assert len(part) == 4
    write_sweep(tmp_path, counts=(0, 16), seeds=(0, 1), sets=(CLEAN,), questions=30)
    assert make_section(collect(tmp_path).groups[0], Settings(resamples=600)).blocks("Robustness to noise") == ()


def test_perplexity_under_noise_helps_where_it_falls_and_says_which_words_are_scored(tmp_path, blocks):
    sets = ("dev.txt", "noise:keyboard=0.5:dev.txt")
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1, 2), sets=sets, questions=60)
    tokens = 5 + np.random.default_rng(0).integers(0, 90, 60)
    for path in tmp_path.glob("*/run.json"):
        content = json.loads(path.read_text())
        content["config"]["task"] = content["task"] = "lm"
        n, seed = content["config"]["registers"]["num_registers"], content["config"]["training"]["seed"]
        for name, file in content["predictions"].items():
            cost = 2.0 + 0.5 * ("keyboard" in name) - 0.1 * n * ("keyboard" in name)
            nats = tokens * (cost + 0.02 * np.random.default_rng([n, seed]).standard_normal(60))
            rows = zip(read_json(path.parent / file), nats, tokens, strict=True)
            columns = [{"id": r["id"], "nats": a, "tokens": float(b), "words": float(b)} for r, a, b in rows]
            write_json(path.parent / file, columns)
            value = float(np.exp(nats.sum() / tokens.sum()))
            content["metrics"][name] = {"perplexity": value, "word_perplexity": value}
        path.write_text(json.dumps(content))
    group = collect(tmp_path).groups[0]
    figure, table = robustness_blocks(group, find_baseline(group), PERPLEXITY, Settings(resamples=400))
    rows = {(row[0], row[2]): row for row in table.rows}
    assert rows["dev-keyboard-0.5", "registers, N = 4"][-1] == "helps"
    assert rows["dev", "registers, N = 4"][-1] != "helps"
    assert rows["dev-keyboard-0.5", "registers, N = 4"][5] < 0
    assert rows["dev-keyboard-0.5", "baseline"][4] == pytest.approx(np.exp(2.5) - np.exp(2.0), abs=0.1)
    assert "lower is better" in drawn(figure, "x")
    assert "Scored are words that noise left" in table.text
    assert "Scored are" not in "".join(block.text for block in blocks)
