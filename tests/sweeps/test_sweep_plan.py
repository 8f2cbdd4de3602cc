"""A sweep tells beforehand what it will do, picks the best N for the controls, and exports what a report reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from regtune.errors import ConfigError, DataError
from regtune.progress import duration
from regtune.records import inside, load_record, read_json, read_predictions, save_record
from regtune.sweeps import cell_run
from regtune.sweeps.cell_run import cell_status, run_cell
from regtune.sweeps.estimate import plan_text
from regtune.sweeps.export import export_cells
from regtune.sweeps.grid import sweep_to_dict
from regtune.sweeps.sweep import best_num_registers, outcome_text, plan_sweep, run_sweep
from regtune.sweeps.sweep_actions import carry_out
from tiny_sweep import fake_runs, invented, tiny_sweep


@pytest.fixture
def runs(monkeypatch):
    return fake_runs(monkeypatch)


def recipe(sweep, folder):
    """A file of the sweep."""
    content = sweep_to_dict(sweep)
    content["base"].pop("output_dir")
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


# Planning


def test_a_dry_run_lists_every_cell_and_writes_nothing(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    plan, waiting = plan_sweep(sweep, tmp_path / "s")
    assert [(part.cell, part.status, part.seconds) for part in plan] == [(c, "open", None) for c in sweep.cells()]
    assert waiting == ()
    assert "2 cells: 0 finished, 2 left; how long they take is unknown" in plan_text(plan)
    assert not (tmp_path / "s").exists()
    assert runs == []


def test_the_time_is_that_of_finished_cells_with_the_nearest_n(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, num_registers=(2, 4, 8), training_sets={"a": ("x.json",), "b": ("y.json",)})
    cells = {(cell.training_set, cell.num_registers): cell for cell in sweep.cells()}
    for n, seconds in ((2, 100.0), (8, 400.0)):
        cell = cells["a", n]
        config = dataclasses.replace(cell.config, output_dir=tmp_path / "s" / cell.key)
        save_record(config.output_dir, invented(config, seconds=seconds))
    plan, _ = plan_sweep(sweep, tmp_path / "s")
    seconds = {(part.cell.training_set, part.cell.num_registers): part.seconds for part in plan}
    assert [seconds["a", n] for n in (0, 2, 4, 8)] == [100.0, 100.0, 100.0, 400.0]
    assert [seconds["b", n] for n in (0, 2, 4, 8)] == [None] * 4
    text = plan_text(plan)
    assert "8 cells: 2 finished, 6 left; about 3 min for 2 of them one after the other, and 4 whose time" in text


def test_a_resumed_cell_counts_its_tokens_and_not_its_last_part(tmp_path):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1), arms=("baseline",))
    first, _ = sweep.cells()
    config = dataclasses.replace(first.config, output_dir=tmp_path / "s" / first.key)
    record = invented(config, seconds=3.0)
    save_record(config.output_dir, dataclasses.replace(record, training=record.training | {"resumed_from": 7}))
    plan, _ = plan_sweep(sweep, tmp_path / "s")
    assert plan[1].seconds == 1000 / 20


@pytest.mark.parametrize(("seconds", "text"), [(5.0, "5 s"), (600.0, "10 min"), (12000.0, "3 h 20 min")])
def test_times_are_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text


# The best N


def test_controls_run_at_the_n_that_scored_best(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, num_registers=(2, 4, 8), seeds=(0, 1), at_best=("sep_copies", "frozen_random"))
    assert plan_sweep(sweep, tmp_path / "s")[1] == ("sep_copies", "frozen_random")
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    controls = [cell for cell in outcome.finished if cell.arm not in ("baseline", "registers")]
    assert {cell.num_registers for cell in controls} == {4}
    assert len(controls) == 4
    assert read_json(tmp_path / "s" / "sweep.json")["best_num_registers"] == {"tiny": 4}
    assert len(runs) == 8 + 4


def test_the_best_n_is_unknown_while_a_cell_is_missing(tmp_path, runs, monkeypatch):
    sweep = tiny_sweep(tmp_path, num_registers=(2, 4), at_best=("sep_copies",))
    run_cell(next(c for c in sweep.cells() if c.num_registers == 2), tmp_path / "s", progress=False)
    assert best_num_registers(sweep, tmp_path / "s") == {}
    last = next(c for c in sweep.cells() if c.num_registers == 4)
    (tmp_path / "s" / last.key).mkdir()
    (tmp_path / "s" / last.key / "run.json").write_text("{}")
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert outcome.waiting == ("sep_copies",)
    assert "the best N isn't known yet: sep_copies" in outcome_text(outcome)


# Export, and the command line's entry


def test_an_exported_cell_is_what_a_report_reads_and_small(tmp_path):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    exported = export_cells(tmp_path / "s", tmp_path / "docs").cells
    assert {path.name for path in exported} == {cell.key for cell in sweep.cells()}
    for path in exported:
        record = load_record(path)
        first = load_record(tmp_path / "s" / path.name)  # an export has files, and checksums, of its own
        assert dataclasses.replace(record, files={}) == dataclasses.replace(first, files={})
        rows = read_predictions(path, record, "dev")
        original = read_predictions(tmp_path / "s" / path.name, first, "dev")
        assert [set(row) for row in rows] == [{"id", "text", "exact_match", "f1"}] * 6
        for column in ("id", "text", "exact_match"):
            assert [row[column] for row in rows] == [row[column] for row in original]
        assert [row["f1"] for row in rows] == pytest.approx([row["f1"] for row in original], abs=1e-4)
        assert {p.name for p in path.iterdir()} == {"run.json", "curve.json", "predictions"}
    assert (tmp_path / "docs" / "sweep.json").is_file()
    assert len(list((tmp_path / "docs" / "examples").iterdir())) == 1


def test_large_sets_are_exported_without_texts_and_unchanged_cells_are_left_alone(tmp_path):
    sweep = tiny_sweep(tmp_path, arms=("baseline",))
    run_sweep(sweep, tmp_path / "s", progress=False)
    ((path,), _) = export_cells(tmp_path / "s", tmp_path / "docs", texts_up_to=5)
    file = inside(path, load_record(path).predictions["dev"])
    assert "text" not in read_json(file)
    assert all("text" not in row for row in read_predictions(path, load_record(path), "dev"))
    stamp = file.stat().st_mtime_ns
    export_cells(tmp_path / "s", tmp_path / "docs", texts_up_to=5)
    assert file.stat().st_mtime_ns == stamp


def test_a_cell_that_was_exported_with_texts_loses_them_when_it_is_exported_without(tmp_path):
    run_sweep(tiny_sweep(tmp_path, arms=("baseline",)), tmp_path / "s", progress=False)
    export_cells(tmp_path / "s", tmp_path / "docs")
    ((path,), _) = export_cells(tmp_path / "s", tmp_path / "docs", texts_up_to=5)
    assert "text" not in read_json(path / "predictions" / "dev.json.gz")


def test_a_broken_cell_is_listed_by_an_export_and_the_others_come_through(tmp_path):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    broken, *whole = sorted(cell.key for cell in sweep.cells())
    file = inside(tmp_path / "s" / broken, load_record(tmp_path / "s" / broken).predictions["dev"])
    file.write_bytes(b"[" + file.read_bytes())
    cells, left_out = export_cells(tmp_path / "s", tmp_path / "docs")
    assert [path.name for path in cells] == whole
    assert list(left_out) == [broken]
    assert file.name in left_out[broken]
    assert not (tmp_path / "docs" / "cells" / broken).exists()
    report = carry_out(recipe(sweep, tmp_path), tmp_path / "s", export=tmp_path / "docs")
    assert not report.healthy
    assert f"1 of {len(whole) + 1} finished cells are left out" in report.text
    assert left_out[broken] in report.text


def test_an_export_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no finished cell to export"):
        export_cells(tmp_path, tmp_path / "docs")


def test_the_command_carries_out_one_thing_at_a_time(tmp_path, runs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe(tiny_sweep(tmp_path), tmp_path)
    assert "2 cells: 0 finished" in carry_out("mine.yaml", dry_run=True).text
    report = carry_out("mine.yaml")
    assert report.healthy
    assert "2 cells finished in runs/mine" in report.text
    assert "2 cells in docs" in carry_out("mine.yaml", export=Path("docs")).text
    with pytest.raises(ConfigError, match="give one of them"):
        carry_out("mine.yaml", dry_run=True, search_only=True)


def test_a_status_is_read_from_the_files_alone(tmp_path):
    (cell, _) = tiny_sweep(tmp_path).cells()
    assert cell_status(tmp_path / "s", cell) == "open"
    cell_run.record_failure(tmp_path / "s" / cell.key, ValueError("no"))
    assert cell_status(tmp_path / "s", cell) == "failed"
    assert cell_run.failure(tmp_path / "s" / cell.key) == "ValueError: no"
