"""The best N by language: named where the interval says so, and honest where it doesn't."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.report.arms import Arm
from regtune.report.collect import collect
from regtune.report.languages import CANNOT_TELL, TITLE, best_of, languages_table
from regtune.report.page import build_report
from regtune.report.scores import Settings, find_baseline
from regtune.stats.comparison import compare
from regtune.tasks.qa.task import F1
from report.synthetic import config_of, write_cell, write_sweep

SETS = ("data/en.dev.json.gz", "data/ko.dev.json.gz", "data/xquad.de.json.gz", "data/mine.json")
SETTINGS = Settings(resamples=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """N = 4 helps in Korean alone; trained on English, and on a file of no known language."""
    folder = tmp_path_factory.mktemp("languages")
    write_sweep(folder, counts=(0, 4, 8), effects={4: {"ko.dev": 0.4}}, sets=SETS, questions=150)
    for count in (0, 4):
        for seed in (0, 1):
            config = config_of("registers" if count else "baseline", count, seed, sets=SETS)
            data = dataclasses.replace(config.data, train=("data/ko.train.json.gz", "data/en.train.json.gz"))
            write_cell(folder, dataclasses.replace(config, data=data), questions=150)
    return folder


def test_the_best_n_is_named_where_its_interval_lies_above_0_and_nowhere_else(folder):
    group = collect(folder).groups[0]
    table = languages_table(group, find_baseline(group), F1, SETTINGS)
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["en.dev", "ko.dev", "xquad.de"]  # the language of mine.json isn't known
    assert rows["ko.dev"][4] == "4"
    assert rows["en.dev"][4] == rows["xquad.de"][4] == CANNOT_TELL
    assert [row[2] for row in table.rows] == ["in training", "zero-shot", "zero-shot"]
    assert rows["ko.dev"][7][0] > 0
    assert rows["en.dev"][7][0] < 0 < rows["en.dev"][7][1]


def test_the_sets_of_all_training_sets_stand_side_by_side_on_top(folder):
    report = build_report(collect(folder), settings=SETTINGS)
    top = report.sections[0].blocks("")[1]
    assert top.name == "languages"
    assert [row[:2] for row in top.rows] == [("en.dev", "en"), ("ko.dev", "ko"), ("xquad.de", "de")]
    korean = top.rows[1]
    assert "; 4 (N = 4: +" in korean[2]
    assert korean[2].endswith("zero-shot")
    assert korean[3].endswith("in training")
    assert all(section.blocks(TITLE) for section in report.results)


def test_one_language_alone_has_no_table(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), sets=(SETS[0], f"noise:case=1:{SETS[0]}"), questions=30)
    group = collect(tmp_path).groups[0]
    assert languages_table(group, find_baseline(group), F1, SETTINGS) is None


def results(**gains):
    """Five seeds whose scores lie above the baseline's by these gains."""
    import numpy as np

    chance = np.random.default_rng(0)
    base = chance.uniform(0.2, 0.8, (5, 400)) + chance.normal(0, 0.01, (5, 1))
    arms = {name: np.clip(base + gain + chance.normal(0, 0.01, (5, 1)), 0, 1) for name, gain in gains.items()}
    found = compare(np.clip(base, 0, 1), arms, resamples=600)
    made = [Arm(name=f"registers, N = {name[1:]}", num_registers=int(name[1:]), settings="") for name in gains]
    return dict(zip(made, found, strict=True))


@pytest.mark.parametrize(
    ("gains", "said", "largest"),
    [
        ({"n2": 0.1, "n4": 0.2}, "4", 4),
        ({"n2": -0.1, "n4": -0.2}, "0", 2),
        ({"n2": 0.0, "n4": -0.2}, CANNOT_TELL, 2),
    ],
)
def test_the_words_for_the_best_n(gains, said, largest):
    words, arm = best_of(results(**gains))
    assert (words, arm.num_registers) == (said, largest)
