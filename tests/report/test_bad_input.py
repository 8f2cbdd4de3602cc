"""Folders that are not a whole, healthy sweep: refused or listed, and always named."""

import dataclasses
import json
import re

import pytest

from regtune.errors import DataError, RegtuneError
from regtune.records import AGAIN, checksums, load_record, read_json, save_record, write_json
from regtune.report.collect import collect, open_cell
from regtune.report.page import build_report, write_report
from regtune.report.scores import Settings
from report.synthetic import config_of, write_cell, write_plan, write_sweep

FAST = Settings(resamples=200)


@pytest.fixture
def small(tmp_path):
    """Two arms, three seeds, one set."""
    return write_sweep(tmp_path / "sweep", counts=(0, 4), seeds=(0, 1, 2), sets=("dev.json",), questions=40)


def cells(folder, count, seed):
    return next(c.folder for c in collect(folder).cells if (c.arm.num_registers, c.seed) == (count, seed))


def arms(folder):
    """The table of arms on the first set."""
    return build_report(collect(folder), settings=FAST).sections[0].blocks("Arms")[0]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no runs: no folder in it has a run\.json"):
        write_report(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder"):
        write_report(tmp_path / "nowhere")


def test_one_run_gets_a_page_that_says_that_nothing_can_be_compared(tmp_path):
    run = write_cell(tmp_path, config_of("registers", 4, 0), questions=40)
    page = write_report(run, output=tmp_path / "out").read_text(encoding="utf-8")
    assert "No comparison is possible: there is one run only." in page
    assert page.count("<svg") == 2
    assert "registers, N\u00a0=\u00a04" in page


def test_one_seed_of_each_arm_is_not_enough(tmp_path):
    write_sweep(tmp_path / "sweep", counts=(0, 4), seeds=(0,), questions=40)
    top = build_report(collect(tmp_path / "sweep"), settings=FAST).sections[0].headline
    assert top.verdict == "no comparison"
    assert "registers, N = 4 is not compared on en.dev: it has 1 finished run" in top.basis


def test_half_written_and_failed_cells_are_listed_and_left_out(small):
    half, failed = small / "aaaaaaaaaaaa", small / "bbbbbbbbbbbb"
    for folder in (half, failed):
        write_json(folder / "config.json", {"registers": {}, "training": {}})
    write_json(failed / "error.json", {"error": "TrainingError: loss is nan\nTraceback"})
    page = write_report(small, resamples=200).read_text(encoding="utf-8")
    assert 'aaaaaaaaaaaa</td><td class="words">not finished (run.json is missing)</td>' in page
    assert 'bbbbbbbbbbbb</td><td class="words">failed: TrainingError: loss is nan</td>' in page


def test_a_half_written_cell_of_the_plan_is_named_by_its_arm_and_seed(small):
    write_json(small / "cccccccccccc" / "config.json", {"registers": {}, "training": {}})
    write_plan(small, ("cccccccccccc", "registers", 4, 3, "t"), training_sets={"t": ["en.train.json.gz"]})
    found = collect(small)
    assert found.skipped[0][1].endswith("Planned: registers, N = 4, seed 3, trained on t")
    assert "(registers, N = 4: seed 3)" in found.groups[0].gaps[0]


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"training_sets": {"t": "en.train.json.gz"}}, "training_sets is {'t': 'en.train.json.gz'}, not lists by name"),
        ({"at_best": 3}, "at_best is 3, not a list of arms"),
        ({"at_best": [3]}, r"at_best is \[3\], not a list of arms"),
    ],
)
def test_a_plan_of_another_shape_is_listed_with_what_to_do(small, part, said):
    write_plan(small, ("cccccccccccc", "registers", 4, 3, "t"), **part)
    ((_, why),) = collect(small).skipped
    assert re.search(f"{said}.*remove that file", why)


def test_a_run_file_that_was_cut_short_is_listed(small):
    path = cells(small, 4, 2) / "run.json"
    path.write_text(path.read_text()[:100])
    ((_, why),) = collect(small).skipped
    assert "can't be read" in why


def test_a_model_folder_is_no_cell(small):
    write_json(small / "some-model" / "config.json", {"model_type": "bert"})
    assert collect(small).skipped == ()


def test_a_record_of_an_older_schema_is_named(small):
    path = cells(small, 4, 2) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    ((name, why),) = collect(small).skipped
    assert name == path.parent.name
    assert f"schema_version=1; this regtune reads 3. {AGAIN}" in why


def test_a_folder_with_nothing_but_older_records_says_so(tmp_path):
    path = write_cell(tmp_path, config_of("baseline", 0, 0), questions=5) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    with pytest.raises(DataError, match=r"no finished run, only 1 that can't be used: .*schema_version=1"):
        write_report(tmp_path)


def test_an_arm_with_another_evaluation_set_is_named(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), questions=40, sets=("dev.json",))
    for seed in (0, 1):
        write_cell(tmp_path, config_of("registers", 8, seed, sets=("other.json",)), questions=40)
    notes = arms(tmp_path).notes
    assert any("registers, N = 8 was not evaluated on dev with seeds 0, 1" in note for note in notes)
    assert any("registers, N = 8 is not compared on dev" in note for note in notes)


def test_an_arm_with_other_questions_under_the_same_name_is_named(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1), questions=40, sets=("dev.json",))
    for seed in (0, 1):
        write_cell(tmp_path, config_of("registers", 8, seed, sets=("dev.json",)), questions=40, prefix="other")
    table = arms(tmp_path)
    said = "registers, N = 8 was evaluated on other questions of dev than the rest with seeds 0, 1; left out there."
    assert said in table.notes
    assert [row[0] for row in table.rows] == ["baseline", "registers, N = 4"]


def test_a_missing_seed_is_said_and_only_the_arm_that_lacks_it_is_compared_without(tmp_path):
    write_sweep(tmp_path, counts=(0, 4, 8), seeds=(0, 1, 2), questions=40, sets=("dev.json",))
    import shutil

    shutil.rmtree(cells(tmp_path, 8, 1))
    table = arms(tmp_path)
    assert "registers, N = 8 is compared with baseline on seeds 0, 2 alone: it lacks seed 1." in table.notes
    assert {row[0]: row[-1] for row in table.rows} == {"baseline": 3, "registers, N = 4": 3, "registers, N = 8": 2}


def test_an_arm_with_one_seed_of_the_baselines_is_left_out_and_named(tmp_path):
    write_sweep(tmp_path, counts=(0, 4), seeds=(0, 1, 2), questions=40, sets=("dev.json",))
    for seed in (2, 7):
        write_cell(tmp_path, config_of("registers", 8, seed, sets=("dev.json",)), questions=40)
    table = arms(tmp_path)
    assert "registers, N = 8 is not compared: it shares seed 2 with baseline; 2 are needed." in table.notes
    assert [row[0] for row in table.rows] == ["baseline", "registers, N = 4"]


def test_arms_without_common_seeds_are_compared_unpaired_and_it_is_said(tmp_path):
    for seed in (0, 1, 2):
        write_cell(tmp_path, config_of("baseline", 0, seed, sets=("dev.json",)), questions=40)
        write_cell(tmp_path, config_of("registers", 4, seed + 10, sets=("dev.json",)), questions=40)
    section = build_report(collect(tmp_path), settings=FAST).sections[0]
    assert "Not paired by seed: the arms share 0 of 6 seeds with baseline." in section.blocks("Arms")[0].notes
    assert "not paired" in section.headline.basis


def in_rows(change):
    """Damage to the predictions' rows."""
    return lambda folder: write_json(folder / PREDICTIONS, change(read_json(folder / PREDICTIONS)))


def in_json(name, *place, value):
    """Another value somewhere in a JSON file of the cell."""

    def damage(folder):
        content = owner = read_json(folder / name)
        for step in place[:-1]:
            owner = owner[step]
        owner[place[-1]] = value
        write_json(folder / name, content)

    return damage


def behind_checksums(change):
    """Damage to predictions whose checksums are recorded."""

    def damage(folder):
        record = load_record(folder)
        save_record(folder, dataclasses.replace(record, files=checksums(folder, [PREDICTIONS])))
        change(folder / PREDICTIONS)

    return damage


PREDICTIONS = "predictions/dev.json.gz"
DAMAGED = {
    "left out": (in_rows(lambda rows: rows[:-2]), r"dev\.json\.gz covers 38 of 40 questions"),
    "no score": (in_rows(lambda rows: [{"id": r["id"]} for r in rows]), r"gz: f1: \[0\] is empty"),
    "text as a score": (
        in_rows(lambda rows: [r | {"f1": "1 of 1"} for r in rows]),
        r"f1: \[0\] is '1 of 1', but must be",
    ),
    "no id": (in_rows(lambda rows: [r | {"id": 3} for r in rows]), r"dev\.json\.gz: id: \[0\] is 3, but must be text"),
    "twice": (in_rows(lambda rows: [*rows, rows[0]]), r"twice \(41 rows, 40 ids\)"),
    "percent": (in_rows(lambda rows: [r | {"f1": 100.0} for r in rows]), r"gz: 40 scores are not in \[0, 1\]"),
    "other scores": (
        in_rows(lambda rows: [r | {"f1": 0.25} for r in rows]),
        r"run\.json says F1 0\.\d{4} on dev, and its predictions give 0\.2500: one of the two was changed",
    ),
    "other metrics": (in_json("run.json", "metrics", "dev", "f1", value=0.99), r"run\.json says F1 0\.9900 on dev"),
    "nothing": (in_rows(lambda rows: []), "holds no predictions"),
    "no rows": (in_rows(lambda rows: 3), "the whole is 3, but must be a list"),
    "changed": (behind_checksums(lambda file: file.write_bytes(file.read_bytes()[:-1])), "is not what the run wrote"),
    "gone": (behind_checksums(lambda file: file.unlink()), r"dev\.json\.gz can't be read: No such file"),
    "curve": (in_json("curve.json", 0, "loss", value="high"), r"curve\.json: \[0\]\.loss is 'high', but must be a num"),
    "config": (
        in_json("run.json", "config", "training", "seed", value=-1),
        r"run\.json: config: training\.seed=-1 must",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_cell_is_listed_with_a_remedy_and_left_out(small, kind, capsys):
    damage, reason = DAMAGED[kind]
    folder = cells(small, 4, 1)
    damage(folder)
    found = collect(small)
    ((name, why),) = found.skipped
    assert (len(found.cells), name) == (5, folder.name)
    assert re.search(reason, why)
    assert why.endswith(AGAIN)
    page = write_report(small, resamples=200).read_text(encoding="utf-8")
    assert folder.name in page[page.index("Not used") :]
    assert "it lacks seed 1" in page
    assert f"1 of 6 are not used, the first: {folder.name}: " in capsys.readouterr().err
    with pytest.raises(RegtuneError, match=reason):
        open_cell(folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("sweep.json", {"sweep": {}, "cells": [3]}, r"sweep\.json: cells\[0\] is 3, but must be a mapping"),
        ("sweep.json", [], r"sweep\.json: the whole is \[\], but must be a mapping"),
        ("search.json", {"rows": [{"f1": [1]}]}, r"search\.json: rows\[0\]\.f1 is \[1\], but must be a number or text"),
    ],
)
def test_a_damaged_file_of_the_sweep_is_listed_and_the_cells_are_reported(small, name, content, reason):
    write_json(small / name, content)
    found = collect(small)
    assert len(found.cells) == 6
    ((file, why),) = found.skipped
    assert file == name
    assert re.search(reason, why)
    assert len(build_report(found, settings=FAST).how.parts) == 2


def test_a_run_with_other_questions_than_its_arm_is_listed_and_the_others_are_compared(small):
    folder = cells(small, 4, 1)
    write_json(folder / PREDICTIONS, [row | {"id": f"z{row['id']}"} for row in read_json(folder / PREDICTIONS)])
    found = collect(small)
    said = f"on dev it has other examples than runs of its arm: q0, q1, q10, q11, q12 and 75 more. {AGAIN}"
    assert found.skipped == ((folder.name, said),)
    assert [row[0] for row in arms(small).rows] == ["baseline", "registers, N = 4"]


def test_a_second_run_of_the_same_arm_and_seed_is_listed_not_counted(small):
    config = config_of("registers", 4, 2, sets=("dev.json",))
    changed = dataclasses.replace(config, training=dataclasses.replace(config.training, data_seed=77))
    write_cell(small, changed, questions=40)
    found = collect(small)
    assert len(found.cells) == 6
    assert "the same arm and seed (registers, N = 4, seed 2)" in found.skipped[0][1]


def test_two_baselines_are_not_mixed(small):
    for seed in (0, 1, 2):
        write_cell(small, config_of("baseline", 0, seed, sets=("dev.json",), learning_rate=9e-5), questions=40)
    section = build_report(collect(small), settings=FAST).sections[0]
    assert "there are 2 baselines with different settings" in section.headline.sentence
    assert "baseline (learning_rate 9e-05)" in section.headline.sentence
