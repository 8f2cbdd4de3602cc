"""What a run leaves on disk is whole or absent, and never points outside."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

from damage import damage, refusal
from regtune import records
from regtune.errors import CheckpointError, DataError
from regtune.records import (
    RunRecord,
    checksums,
    compact_predictions,
    file_name,
    ids_file,
    inside,
    load_record,
    machine,
    read_json,
    read_predictions,
    save_record,
    versions,
    write_bytes,
    write_json,
)
from regtune.session import open_target
from regtune.sweeps.search import with_found_rates
from regtune.sweeps.sweep import check_folder, open_folder
from tiny_sweep import tiny_sweep

RECORD = RunRecord(
    config={"model": "minilm"},
    config_hash="0123456789ab",
    metrics={"dev": {"f1": 0.5}},
    training={"steps": 3},
    data={},
    parameters={"total": 10},
    versions={"torch": "2"},
    machine={"cores": 2},
    task="qa",
    methods=[],
    label="baseline",
)


def test_a_record_survives_the_round_trip(tmp_path):
    save_record(tmp_path, RECORD)
    assert load_record(tmp_path) == RECORD


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_round_trips_with_and_without_compression(tmp_path, name):
    content = {"text": "naïve ✓", "numbers": [1, 2.5, None]}
    assert read_json(write_json(tmp_path / "deep" / name, content)) == content


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = write_json(tmp_path / "a.json", {"old": 1})

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_whatever_a_run_has_found_can_be_written(tmp_path, name):
    odd = {
        "id": "a\ud800b\0",
        "loss": [float("nan"), -float("inf")],
        "n": np.int64(3),
        "x": np.ones(2),
        "p": Path("a/b"),
    }
    found = read_json(write_json(tmp_path / name, odd))
    assert found == {"id": "a\ud800b\0", "loss": ["NaN", "-Infinity"], "n": 3, "x": [1.0, 1.0], "p": "a/b"}


def test_every_file_is_written_by_what_writes_it_whole():
    """Elsewhere only into a hidden folder or beside, each with a rename afterwards."""
    root = Path(records.__file__).parent
    writes = re.compile(r"write_text\(|\.write_bytes\(|save_file\(|open\([^)]*[\"'][wax]b?[\"']")
    found = {str(f.relative_to(root)) for f in root.rglob("*.py") if writes.search(f.read_text(encoding="utf-8"))}
    beside = {"locks.py", "methods/warm_up.py", "models/e5_multilingual.py", "models/smollm2.py"}
    assert found == beside | {"records.py", "training/checkpoints.py", "training/trainer.py"}


def with_files(folder):
    """A run with weights and their checksum."""
    write_bytes(folder / "model" / "model.safetensors", bytes(1000))
    record = dataclasses.replace(RECORD, files=checksums(folder, ["model/model.safetensors"]))
    save_record(folder, record)
    return folder / "model" / "model.safetensors"


def test_a_flipped_byte_in_finished_weights_is_noticed_when_they_are_opened(tmp_path):
    weights = with_files(tmp_path)
    assert open_target(tmp_path).record is not None
    weights.write_bytes(bytes(500) + b"\x01" + bytes(499))
    os.utime(weights, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what the run wrote"):
        open_target(tmp_path)


def test_a_score_that_is_no_number_is_no_record(tmp_path):
    save_record(tmp_path, dataclasses.replace(RECORD, metrics={"dev": {"f1": float("nan")}}))
    with pytest.raises(CheckpointError, match=r"metrics\.dev\.f1 is nan, which is no score"):
        load_record(tmp_path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_LARGEST", 1000)
    write_json(tmp_path / "a.json.gz", "x" * 2000)
    with pytest.raises(DataError, match="is no file of regtune's"):
        read_json(tmp_path / "a.json.gz")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json can't be read"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match=r"b\.json\.gz can't be read"):
        read_json(tmp_path / "b.json.gz")


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no finished run \(run\.json is missing\)"):
        load_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema_version=1; this regtune reads 3"),
        ({"surprise": 1}, r"run\.json: 'surprise'\. .*Move that folder away"),
    ],
)
def test_records_of_another_schema_are_refused(tmp_path, change, message):
    (tmp_path / "run.json").write_text(json.dumps(dataclasses.asdict(RECORD) | change))
    with pytest.raises(CheckpointError, match=message):
        load_record(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_path_in_a_record_never_leaves_the_run_directory(tmp_path, name):
    with pytest.raises(CheckpointError, match="outside the run directory; refused"):
        inside(tmp_path, name)


def test_a_link_out_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="outside the run directory"):
        inside(tmp_path / "run", "link/secret")
    assert inside(tmp_path / "run", "predictions/dev.json").name == "dev.json"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tydiqa:dev:english", "tydiqa-dev-english"),
        ("../data/tydiqa/en.dev.json.gz", "en.dev.json.gz"),
        ("///", "set"),
    ],
)
def test_data_set_names_become_safe_file_names(name, expected):
    assert file_name(name) == expected


ROWS = [
    {"id": "q1", "text": "a", "exact_match": 1.0, "f1": 1.0, "n_best": []},
    {"id": "q2", "text": "", "exact_match": 0.0, "f1": 2 / 3, "n_best": []},
]


def exported(folder, **changes):
    """A cell's folder with compact predictions in `p.json.gz`, and the ids beside the cells."""
    run_dir = folder / "cells" / "abc"
    content = compact_predictions(ROWS, texts=True)
    write_json(ids_file(folder, content["examples"]), ["q1", "q2"])
    write_json(run_dir / "p.json.gz", content | changes)
    return run_dir


def predictions(run_dir, file="p.json.gz"):
    return read_predictions(run_dir, dataclasses.replace(RECORD, predictions={"dev": file}), "dev")


def test_compact_predictions_are_read_like_the_rows_that_they_were_made_of(tmp_path):
    rows = predictions(exported(tmp_path))
    assert rows == [
        {"id": "q1", "text": "a", "exact_match": 1, "f1": 1},
        {"id": "q2", "text": "", "exact_match": 0, "f1": 0.6667},
    ]
    write_json(tmp_path / "run" / "p.json", ROWS)
    assert predictions(tmp_path / "run", "p.json") == ROWS


def test_compact_predictions_keep_the_columns_of_any_task(tmp_path):
    rows = [
        {"id": "q1", "label": "a", "accuracy": 1.0, "nats": 2.34567, "probabilities": {}},
        {"id": "q2", "label": "b", "accuracy": 0.0, "nats": 1.0, "probabilities": {}},
    ]
    content = compact_predictions(rows, texts=True)
    assert content["accuracy"] == "10"
    run_dir = exported(tmp_path)
    write_json(run_dir / "p.json.gz", content)
    assert predictions(run_dir) == [
        {"id": "q1", "label": "a", "accuracy": 1, "nats": 2.3457},
        {"id": "q2", "label": "b", "accuracy": 0, "nats": 1},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_match": "1"}, "does not fit its list of examples"),
        ({"exact_match": "1x"}, "is no predictions file"),
        ({"f1": [1.0]}, "does not fit its list of examples"),
        ({"examples": "../../secret"}, "is no hash of example ids"),
        ({"examples": "0123456789ab"}, "0123456789ab.json.gz can't be read"),
    ],
)
def test_compact_predictions_that_do_not_fit_their_examples_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        predictions(exported(tmp_path, **changes))


def test_a_list_of_examples_that_was_changed_is_refused(tmp_path):
    run_dir = exported(tmp_path)
    (file,) = (tmp_path / "examples").iterdir()
    write_json(file, ["q2", "q1"])
    with pytest.raises(DataError, match="does not fit its list of examples"):
        predictions(run_dir)


def test_the_code_itself_is_told_apart_where_the_version_is_the_same():
    assert re.fullmatch("[0-9a-f]{12}", versions()["regtune_source"])
    here = Path(records.__file__).parent
    assert all((here / part).is_dir() or part == "explorer" for part in records._DRAWING)


def test_versions_and_machine_say_where_a_number_was_measured():
    assert versions()["torch"].startswith("2.")
    assert machine()["cores"] >= 1
    assert machine()["memory_bytes"] > 0


def fuzz(folder, rounds):
    """Damages a sweep's files; whatever reads them gives a value or one of regtune's errors that names the file."""
    random = Random(7)
    run_dir, sweep = exported(folder), tiny_sweep(folder)
    save_record(run_dir, dataclasses.replace(RECORD, predictions={"dev": "p.json.gz"}))
    open_folder(sweep, folder / "s")
    rates = {"learning_rate": 1e-4, "register_learning_rate": None}
    row = {"arm": "baseline", "num_registers": 0, **rates, "exact_match": 0.1, "f1": 0.2, "seconds": 1.0, "key": "k"}
    facts = {"held_out": "", "metric": "f1", "training_examples": 9, "held_out_examples": 3}
    facts |= {"epochs": 1.0, "seeds": [0], "num_registers": 8, "machine": {}}
    write_json(folder / "s" / "search.json", {"best": {"baseline": rates}, "rows": [row]} | facts)
    readers = {
        run_dir / "run.json": lambda: load_record(run_dir),
        run_dir / "p.json.gz": lambda: predictions(run_dir),
        folder / "s" / "sweep.json": lambda: check_folder(sweep, folder / "s"),
        folder / "s" / "search.json": lambda: with_found_rates(sweep, folder / "s"),
    }
    refused = 0
    for path, read in readers.items():
        read()  # whole, it is read
        whole = path.read_bytes()
        for _ in range(rounds):
            damage(path, random)
            refused += refusal(read, folder) != ""
            path.write_bytes(whole)
    return refused


def test_no_damage_to_a_record_escapes_as_a_raw_error(tmp_path):
    assert fuzz(tmp_path, 100) > 150


@pytest.mark.slow
def test_no_damage_to_a_record_escapes_as_a_raw_error_in_a_long_run(tmp_path):
    assert fuzz(tmp_path, 1_000) > 1_600
