"""Every cell exactly once, whatever happens: kills, failures, two processes, other folders, old records."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from regtune.errors import CheckpointError, DataError
from regtune.locks import lock_holder, locked
from regtune.records import load_record, read_json
from regtune.session import Session
from regtune.sweeps import run as experiment
from regtune.sweeps.cell_run import cell_status, finished_record, lock_file, run_cell
from regtune.sweeps.estimate import plan_text
from regtune.sweeps.grid import LearningRates
from regtune.sweeps.sweep import outcome_text, plan_sweep, run_sweep
from tiny_sweep import fake_runs, tiny_sweep, with_base

HOLDER = """
import sys, time
from pathlib import Path
from regtune.locks import locked
with locked(Path(sys.argv[1]) / "cell") as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def runs(monkeypatch):
    return fake_runs(monkeypatch)


# What is left behind


def test_a_sweep_leaves_a_record_for_every_cell_and_says_what_it_is(tmp_path):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert [cell.key for cell in outcome.finished] == [cell.key for cell in sweep.cells()]
    assert (outcome.failed, outcome.elsewhere, outcome.waiting) == ({}, (), ())
    for cell in sweep.cells():
        run_dir = tmp_path / "s" / cell.key
        assert load_record(run_dir).config_hash == cell.key
        found = {path.name for path in run_dir.iterdir() if not path.name.startswith(".lock")}
        model = {"model"} if cell.seed == 0 else set()
        assert found == {"run.json", "config.json", "curve.json", "predictions"} | model
    content = read_json(tmp_path / "s" / "sweep.json")
    assert content["cells"] == [cell.describe() for cell in sweep.cells()]
    assert "4 cells finished" in outcome_text(outcome)


@pytest.mark.parametrize(("keep", "models"), [("none", 0), ("first_seed", 1), ("all", 2)])
def test_models_are_kept_as_asked(tmp_path, keep, models):
    run_sweep(tiny_sweep(tmp_path, arms=("baseline",), seeds=(3, 1), keep_models=keep), tmp_path / "s", progress=False)
    assert len(list((tmp_path / "s").glob("*/model/model.safetensors"))) == models


def test_a_cell_in_a_sweep_gives_what_the_run_alone_gives(tmp_path):
    from regtune.sweeps.run import run_experiment

    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    run_sweep(sweep, tmp_path / "s", progress=False)
    for cell in sweep.cells():
        alone = run_experiment(dataclasses.replace(cell.config, output_dir=tmp_path / cell.key), progress=False)
        assert finished_record(tmp_path / "s", cell).metrics == alone.metrics


def test_warm_up_arms_run_and_leave_no_weights_of_the_warm_up(tmp_path):
    sweep = tiny_sweep(tmp_path, arms=("warm_up_all", "warm_up_registers", "warm_up_control"), keep_models="none")
    sweep = dataclasses.replace(sweep, methods={"warm_up": {"steps": 2, "batch_size": 2}})
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert len(outcome.finished) == 3
    assert all(finished_record(tmp_path / "s", cell).training["warm_up"]["steps"] == 2 for cell in outcome.finished)
    assert not list((tmp_path / "s").rglob("*.safetensors"))


# Once, and not twice


def test_finished_cells_are_never_run_again(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    run_sweep(sweep, tmp_path / "s", progress=False)
    run_sweep(sweep, tmp_path / "s", progress=False)
    assert sorted(runs) == sorted(cell.key for cell in sweep.cells())


def test_two_threads_of_control_share_the_cells_and_none_is_run_twice(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, seeds=tuple(range(15)))
    starts = [
        threading.Thread(target=run_sweep, args=(sweep, tmp_path / "s"), kwargs={"progress": False}) for _ in range(3)
    ]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    assert sorted(runs) == sorted(cell.key for cell in sweep.cells())


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    first, second = sweep.cells()
    with locked(lock_file(tmp_path / "s", first.key)) as ours:
        assert ours
        assert cell_status(tmp_path / "s", first) == "running"
        assert lock_holder(lock_file(tmp_path / "s", first.key)).pid == os.getpid()
        outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert runs == [second.key]
    assert outcome.elsewhere == (first,)
    assert "1 are run by another process" in outcome_text(outcome)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "True"
        with locked(tmp_path / "cell") as ours:
            assert not ours
        assert lock_holder(tmp_path / "cell").pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert (tmp_path / "cell").is_file()
    assert lock_holder(tmp_path / "cell") is None
    with locked(tmp_path / "cell") as ours:
        assert ours


def test_looking_at_a_lock_does_not_keep_anyone_from_taking_it(tmp_path):
    stop = threading.Event()

    def look():
        while not stop.is_set():
            lock_holder(tmp_path / "cell")

    with locked(tmp_path / "cell"):
        pass
    watcher = threading.Thread(target=look)
    watcher.start()
    taken = []
    for _ in range(50):
        with locked(tmp_path / "cell") as ours:
            taken.append(ours)
        time.sleep(0.001)
    stop.set()
    watcher.join()
    assert all(taken)


# Kills and half-written cells


def test_a_killed_sweep_continues_inside_its_cell(tmp_path, monkeypatch):
    sweep = tiny_sweep(tmp_path, epochs=3.0)
    whole = run_sweep(sweep, tmp_path / "whole", progress=False)
    evaluations = []
    predict = Session.predict

    def killed(*args, **kwargs):
        evaluations.append(1)
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return predict(*args, **kwargs)

    monkeypatch.setattr(Session, "predict", killed)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, tmp_path / "s", progress=False)
    monkeypatch.setattr(Session, "predict", predict)
    first = sweep.cells()[0]
    assert cell_status(tmp_path / "s", first) == "begun"
    run_sweep(sweep, tmp_path / "s", progress=False)
    assert finished_record(tmp_path / "s", first).training["resumed_from"] == 2
    for cell in whole.finished:
        assert finished_record(tmp_path / "s", cell).metrics == finished_record(tmp_path / "whole", cell).metrics


def test_half_written_files_of_a_killed_process_do_not_stop_a_cell(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    first, second = sweep.cells()
    for cell, name in ((first, ".config.json.4711"), (second, ".run.json.4711")):
        (tmp_path / "s" / cell.key).mkdir(parents=True)
        (tmp_path / "s" / cell.key / name).write_text('{"half')
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert outcome.finished == (first, second)
    assert not list((tmp_path / "s").rglob(".*.4711"))


def test_a_record_of_an_older_schema_is_neither_used_nor_overwritten(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    first, second = sweep.cells()
    path = tmp_path / "s" / first.key / "run.json"
    content = json.loads(path.read_text()) | {"schema_version": 0}
    path.write_text(json.dumps(content))
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert outcome.finished == (second,)
    assert "schema_version=0" in outcome.failed[first.label]
    assert json.loads(path.read_text()) == content
    assert len(runs) == 2


def test_a_record_of_another_config_is_not_taken_for_the_cells(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    first, second = sweep.cells()
    (tmp_path / "s" / first.key / "run.json").write_bytes((tmp_path / "s" / second.key / "run.json").read_bytes())
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert f"another config (hash {second.key})" in outcome.failed[first.label]


# Failures


def test_a_failed_cell_is_recorded_does_not_stop_the_others_and_is_tried_again(tmp_path, runs, monkeypatch):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    broken, *others = sweep.cells()
    works = experiment.run_experiment

    def fails(config, **kwargs):
        if config.output_dir.name == broken.key:
            raise DataError("the file went away")
        return works(config, **kwargs)

    monkeypatch.setattr(experiment, "run_experiment", fails)
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert outcome.failed == {broken.label: "DataError: the file went away"}
    assert outcome.finished == tuple(others)
    error = read_json(tmp_path / "s" / broken.key / "error.json")
    assert (error["type"], error["message"]) == ("DataError", "the file went away")
    assert any("in fails" in line for line in error["traceback"])
    assert "the file went away" in outcome_text(outcome)
    assert "failed" in plan_text(plan_sweep(sweep, tmp_path / "s")[0])
    monkeypatch.setattr(experiment, "run_experiment", works)
    assert run_sweep(sweep, tmp_path / "s", progress=False).failed == {}
    assert not (tmp_path / "s" / broken.key / "error.json").exists()


def test_a_cell_that_cannot_even_begin_can_be_tried_again(tmp_path):
    sweep = tiny_sweep(tmp_path, arms=("baseline",), training_sets={"t": (str(tmp_path / "later.json"),)})
    outcome = run_sweep(sweep, tmp_path / "s", progress=False)
    assert "later.json" in next(iter(outcome.failed.values()))
    (tmp_path / "later.json").write_bytes((tmp_path / "train.json").read_bytes())
    assert len(run_sweep(sweep, tmp_path / "s", progress=False).finished) == 1


# Folders


def test_a_folder_of_another_sweep_is_refused_with_the_difference(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    other = with_base(sweep, settings={**sweep.base.settings, "top_k": 3})
    with pytest.raises(CheckpointError, match=r"holds another sweep; different: base\.settings"):
        run_sweep(other, tmp_path / "s", progress=False)
    sets = dataclasses.replace(sweep, evaluation_sets=(str(tmp_path / "train.json"),))
    with pytest.raises(CheckpointError, match="different: evaluation_sets"):
        run_sweep(sets, tmp_path / "s", progress=False)
    rates = dataclasses.replace(sweep, learning_rates={"registers": LearningRates(learning_rate=1.0)})
    with pytest.raises(CheckpointError, match="the learning rates or methods of the arm 'registers'"):
        run_sweep(rates, tmp_path / "s", progress=False)
    assert len(runs) == 2


def test_a_sweep_may_grow_and_another_process_may_run_another_part(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    more = dataclasses.replace(
        sweep, arms=("baseline", "registers", "sep_copies"), num_registers=(0, 2, 5), seeds=(0, 9)
    )
    assert len(run_sweep(more, tmp_path / "s", progress=False).finished) == 10
    run_sweep(sweep, tmp_path / "s", progress=False)
    assert len(read_json(tmp_path / "s" / "sweep.json")["cells"]) == 10
    assert len(runs) == 10


def test_a_folder_that_holds_something_else_is_refused(tmp_path, runs):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"is not empty and holds no sweep\.json \(but thesis\.txt\)"):
        run_sweep(tiny_sweep(tmp_path), tmp_path / "s", progress=False)
    assert runs == []


def test_cells_that_were_run_one_by_one_are_taken_over(tmp_path, runs):
    sweep = tiny_sweep(tmp_path)
    run_cell(sweep.cells()[1], tmp_path / "s", progress=False)
    assert len(run_sweep(sweep, tmp_path / "s", progress=False).finished) == 2
    assert len(runs) == 2
