"""The comparison on top is called planned only if it was, and corrected for what was planned with it alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from command_line import invoke
from regtune.config import config_hash
from regtune.records import read_json, write_json
from regtune.report.collect import collect
from regtune.report.page import build_report, draw
from regtune.report.scores import Settings
from report.synthetic import config_of, write_cell, write_plan

BEFORE, AFTER = "2025-12-31T00:00:00+00:00", "2026-01-02T00:00:00+00:00"  # the runs start between them
PLAN = {"num_registers": [4], "on": "en.dev", "metric": "f1", "seeds": 4, "weights": "last", "delta": 0.01}
QUIET = 400
SEARCH = Path(__file__).resolve().parents[2] / "docs" / "results" / "search.json"


def version(written=BEFORE, begun=0, **changed):
    return {"plan": {"arm": "registers", "training_set": ""} | PLAN | changed, "written": written, "begun": begun}


def sweep(folder, *versions, effects, controls=(), seeds=(0, 1, 2, 3)):
    """Runs at N = 0 and the N of `effects`, and their `sweep.json` with these versions of the plan."""
    places = []
    for seed in seeds:
        cells = [("baseline", 0), *(("registers", n) for n in effects), *((arm, 4) for arm in controls)]
        for arm, count in cells:
            config = config_of(arm, count, seed)
            effect = effects.get(count, 0.0) if arm == "registers" else 0.0
            write_cell(folder, config, effect=effect, questions=QUIET)
            places.append((config_hash(config), arm, count, seed, "t"))
    write_plan(folder, *places, training_sets={"t": ["en.train.json.gz"]})
    content = read_json(folder / "sweep.json")
    write_json(folder / "sweep.json", content | {"plans": list(versions)})
    return folder


def top(folder, **settings):
    report = build_report(collect(folder), settings=Settings(**({"resamples": 500} | settings)))
    return report.results[0].headline


def test_without_a_plan_nothing_is_said_of_one_and_nothing_changes(tmp_path):
    found = top(sweep(tmp_path, effects={4: 0.2, 16: 0.0}))
    assert found.planned == ""
    assert "corrected for 2 comparisons" in found.basis


def test_the_planned_comparison_is_on_top_corrected_for_the_planned_ones_alone(tmp_path):
    found = top(sweep(tmp_path, version(), effects={4: 0.03, 16: 0.3}))
    assert found.planned.startswith(
        "Planned: registers at N = 4 against baseline, by F1 on en.dev; 4 seeds in each arm"
    )
    assert f"written {BEFORE}, before the first run" in found.planned
    assert found.arm.num_registers == 4
    assert "one comparison, no correction" in found.basis
    assert "N = 16" not in found.sentence
    assert found.planned.endswith("corrected for all that was tried: helps: registers, N = 16.")


def test_the_planned_p_is_that_of_the_planned_family(tmp_path):
    """Two planned N of three: Holm over two; the table keeps Holm over all three."""
    folder = sweep(tmp_path, version(num_registers=[4, 8]), effects={4: 0.05, 8: 0.0, 16: 0.0})
    report = build_report(collect(folder), settings=Settings(resamples=500))
    assert "corrected for 2 comparisons" in report.results[0].headline.basis
    (table,) = report.results[0].blocks("Arms")[:1]
    assert "corrected for 3 comparisons" in table.text


def test_a_plan_from_after_the_first_run_plans_nothing(tmp_path):
    plain = top(sweep(tmp_path / "plain", effects={4: 0.03, 16: 0.3}))
    for number, late in enumerate((version(AFTER), version(AFTER, 3), version(BEFORE, 3))):
        found = top(sweep(tmp_path / str(number), late, effects={4: 0.03, 16: 0.3}))
        assert found.planned.startswith("Not planned: the comparison above was found afterwards.")
        assert "cells had begun" in found.planned
        assert (found.sentence, found.basis) == (plain.sentence, plain.basis)


def test_a_changed_plan_does_not_move_what_was_planned_and_is_told(tmp_path):
    found = top(sweep(tmp_path, version(), version(AFTER, 12, num_registers=[16]), effects={4: 0.0, 16: 0.3}))
    assert found.planned.startswith("Planned: registers at N = 4")
    assert f"The plan was changed (num_registers from 4 to 16) {AFTER}, when 12 cells had begun." in found.planned
    assert found.arm.num_registers == 4


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"num_registers": [4, 32]}, "there is no finished run of registers at N = 32"),
        ({"arm": "sep"}, "there is no finished run of sep at N = 4"),
        ({"on": "elsewhere"}, "the runs have no scores on elsewhere"),
        ({"weights": "held_out"}, r"runs were scored with other weights than planned \(last\)"),
    ],
)
def test_a_plan_that_was_not_carried_out_leaves_the_verdict_as_it_was_and_says_why(tmp_path, changed, why):
    import re

    plain = top(sweep(tmp_path / "plain", effects={4: 0.03, 16: 0.3}))
    found = top(sweep(tmp_path / "s", version(**changed), effects={4: 0.03, 16: 0.3}))
    assert found.planned.startswith("Not planned: ")
    assert re.search(f"is not carried out: {why}", found.planned)
    assert found.sentence == plain.sentence


def test_fewer_seeds_than_planned_are_an_interim_look_and_more_are_counted(tmp_path):
    fewer = top(sweep(tmp_path / "few", version(seeds=10), effects={4: 0.1}))
    assert "An interim look: 4 of 10 planned seeds." in fewer.planned
    more = top(sweep(tmp_path / "more", version(seeds=3), effects={4: 0.1}))
    assert "It has 4 seeds, 1 more than planned." in more.planned


def test_the_planned_margin_is_used_and_another_one_is_said_to_be_unplanned(tmp_path):
    folder = sweep(tmp_path, version(delta=0.03), effects={4: 0.0})
    found = top(folder)
    assert "equivalence at ±3 points; a true" in found.basis
    asked = top(folder, delta=0.02)
    assert "equivalence at ±2 points" in asked.basis
    assert "Equivalence is tested at ±2 points, which was not planned." in asked.planned


def test_a_plan_for_another_metric_and_set_is_carried_out_there(tmp_path):
    found = top(sweep(tmp_path, version(metric="exact_match", on="xquad.en", delta=0.05), effects={4: 0.2}))
    assert "by EM on xquad.en" in found.planned
    assert found.basis.startswith("EM on xquad.en")
    assert "equivalence at ±5 points" in found.basis


def test_an_arm_of_another_kind_can_be_planned(tmp_path):
    found = top(sweep(tmp_path, version(arm="sep"), effects={4: 0.3}, controls=("sep",)))
    assert found.sentence.startswith(("The arm [SEP] copies", "These runs cannot tell whether the arm [sep] copies"))
    assert "helps: registers, N = 4" in found.planned


def test_a_plan_about_another_training_set_is_not_about_these_runs(tmp_path):
    found = top(sweep(tmp_path, version(training_set="u"), effects={4: 0.3}))
    assert found.planned.endswith("The plan is about runs that were trained on u.")


def test_runs_that_cannot_be_compared_yet_show_the_plan(tmp_path):
    found = top(sweep(tmp_path, version(), effects={}))
    assert found.verdict == "no comparison"
    assert found.planned.startswith("Planned: registers at N = 4")


def test_page_markdown_and_terminal_show_the_plan_beside_the_verdict(tmp_path, capsys):
    folder = sweep(tmp_path / "s", version(), effects={4: 0.1})
    files = draw(build_report(collect(folder), settings=Settings(resamples=500)))
    assert '<p class="planned">Planned: registers at N = 4' in files["report.html"]
    lines = files["tables.md"].splitlines()
    assert next(number for number, line in enumerate(lines) if line.startswith("Planned: registers at N = 4")) < 8
    code, out, _ = invoke(capsys, ("report", folder, "--output-dir", tmp_path / "page", "--resamples", "500"))
    assert code == 0
    assert out.startswith(f"Report: {tmp_path / 'page' / 'report.html'}\nRegisters ")
    assert out.count("Planned: registers at N = 4") == 1


def test_sweeps_in_one_folder_keep_their_own_plans_gaps_and_searches(tmp_path):
    """Tasks in columns: each has its recipe, its folder and its plan."""
    sweep(tmp_path / "first", version(), effects={4: 0.03})
    sets = ("other.dev.json",)
    places = []
    for seed in range(4):
        for arm, count in (("baseline", 0), ("registers", 8)):
            config = config_of(arm, count, seed, sets=sets)
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=("other.train.json",)))
            write_cell(tmp_path / "second", config, questions=QUIET)
            places.append((config_hash(config), arm, count, seed, "o"))
    places.append(("0" * 12, "registers", 8, 9, "o"))
    write_plan(tmp_path / "second", *places, training_sets={"o": ["other.train.json"]})
    content = read_json(tmp_path / "second" / "sweep.json")
    write_json(
        tmp_path / "second" / "sweep.json",
        content | {"plans": [version(num_registers=[8], on="other.dev")]},
    )
    for name in ("first", "second"):
        shutil.copy(SEARCH, tmp_path / name / "search.json")
    found = collect(tmp_path)
    assert sorted(found.searches) == ["first", "second"]
    assert {group.train_name: len(group.gaps) for group in found.groups} == {"t": 0, "o": 1}
    assert found.not_begun == ("registers, N = 8, trained on o: seed 9",)
    report = build_report(found, settings=Settings(resamples=500))
    planned = {section.title.split(":")[0]: section.headline.planned for section in report.results}
    assert planned["t"].startswith("Planned: registers at N = 4 against baseline, by F1 on en.dev")
    assert planned["o"].startswith("Planned: registers at N = 8 against baseline, by F1 on other.dev")
    assert report.sections[0].title == "All at a glance"
    titles = [block.title for block in report.how.parts[0].blocks if block.kind == "table"]
    assert titles[:2] == [f"The search for learning rates: {name}" for name in ("first", "second")]


def test_searches_of_sweeps_with_one_name_in_two_places_are_both_there(tmp_path):
    for place in ("one", "two"):
        sweep(tmp_path / place / "trec", version(), effects={4: 0.03}, seeds=(0, 1))
        shutil.copy(SEARCH, tmp_path / place / "trec" / "search.json")
    assert sorted(collect(tmp_path).searches) == ["one-trec", "two-trec"]


def test_a_broken_plan_is_named_by_its_sweep_and_the_other_is_used(tmp_path):
    sweep(tmp_path / "first", version(), effects={4: 0.03})
    sweep(tmp_path / "second", version(num_registers=[16]), effects={16: 0.0}, seeds=(5, 6, 7, 8))
    (tmp_path / "second" / "sweep.json").write_text("{")
    found = collect(tmp_path)
    assert [name for name, _ in found.skipped] == ["second/sweep.json"]
    assert len(found.groups[0].plans) == 1
