"""`regtune compare`: two runs side by side on the terminal, or a reason why not."""

import pytest

from regtune.errors import CheckpointError, ConfigError, DataError
from regtune.report.compare import compare_two, comparison_text
from report.synthetic import config_of, write_cell


@pytest.fixture
def runs(tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0), questions=150)
    other = write_cell(tmp_path, config_of("registers", 4, 0), questions=150, effect=0.3)
    return one, other


def test_both_metrics_on_every_set_with_difference_interval_and_sentence(runs):
    found = compare_two(*runs, resamples=500)
    assert [part.name for part in found.sets] == ["en.dev", "xquad.en"]
    for part in found.sets:
        for metric, result in part.results.items():
            scores = [run.record.metrics[part.name][metric] for run in (found.first, found.second)]
            assert result.difference == pytest.approx(scores[1] - scores[0])
    text = comparison_text(found)
    assert "(baseline, seed 0)" in text
    assert "(registers, N = 4, seed 0)" in text
    assert "F1: B helps: +" in text
    assert "does not cover how much the score changes from seed to seed" in text


def test_flips_are_counted_and_some_are_shown(runs):
    part = compare_two(*runs, resamples=500).sets[0]
    assert len(part.flips.gained) - len(part.flips.lost) == round(150 * part.results["exact_match"].difference)
    text = comparison_text(compare_two(*runs, resamples=500), flips=2)
    assert f"Flips: {len(part.flips.gained)} questions wrong in A and right in B" in text
    assert text.count("  won   q") == 4
    assert '"wrong answer' in text


def test_the_order_of_the_questions_does_not_matter(runs):
    from regtune.records import read_json, write_json

    before = compare_two(*runs, resamples=500).sets[0].results["f1"]
    path = runs[1] / "predictions" / "en.dev.json.gz"
    write_json(path, read_json(path)[::-1])
    assert compare_two(*runs, resamples=500).sets[0].results["f1"] == before


def test_an_answer_cannot_steer_the_terminal(tmp_path):
    evil = dict.fromkeys(range(150), "\x1b[2J\x1b[31mgone\nnext")
    one = write_cell(tmp_path, config_of("baseline", 0, 0), questions=150, texts=evil)
    other = write_cell(tmp_path, config_of("registers", 4, 0), questions=150, effect=0.3)
    text = comparison_text(compare_two(one, other, resamples=500))
    assert "\x1b" not in text
    assert "[31mgone next" in text


def test_different_evaluation_sets_are_refused(tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0, sets=("a.json",)), questions=20)
    other = write_cell(tmp_path, config_of("registers", 4, 0, sets=("b.json",)), questions=20)
    with pytest.raises(DataError, match=r"different sets: .* on a; .* on b\. Train one"):
        compare_two(one, other)


def test_different_questions_of_one_set_are_refused_with_their_ids(tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0), questions=20)
    other = write_cell(tmp_path, config_of("registers", 4, 0), questions=20, prefix="z")
    with pytest.raises(DataError, match="B lacks examples that A has: q0, q1"):
        compare_two(one, other)


def test_predictions_that_leave_out_questions_are_refused(tmp_path):
    one = write_cell(tmp_path, config_of("baseline", 0, 0), questions=20)
    other = write_cell(tmp_path, config_of("registers", 4, 0), questions=20, drop=1)
    with pytest.raises(DataError, match="covers 19 of 20 questions"):
        compare_two(one, other)


def test_a_run_with_itself_is_refused(runs):
    with pytest.raises(ConfigError, match="are the same run"):
        compare_two(runs[0], runs[0])


def test_a_folder_without_a_run_is_refused(runs, tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished run"):
        compare_two(runs[0], tmp_path / "nothing")


def test_relative_folders_of_an_export_are_found(monkeypatch):
    from pathlib import Path

    cells = Path(__file__).parents[2] / "docs" / "results" / "ablation" / "cells"
    one, other = sorted(path.name for path in cells.iterdir())[:2]
    monkeypatch.chdir(cells)
    found = compare_two(Path(one), Path(other), resamples=200)
    assert found.sets[0].results["f1"].examples == 440
