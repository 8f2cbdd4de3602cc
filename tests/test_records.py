"""What a run leaves on disk is whole or absent, and never points outside."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from regtune import records
from regtune.errors import CheckpointError, DataError
from regtune.records import (
    RunRecord,
    compact_predictions,
    file_name,
    inside,
    load_record,
    machine,
    questions_file,
    read_json,
    read_predictions,
    save_record,
    versions,
    write_json,
)

RECORD = RunRecord(
    config={"model": "minilm"},
    config_hash="0123456789ab",
    metrics={"dev": {"f1": 0.5}},
    training={"steps": 3},
    data={},
    parameters={"total": 10},
    versions={"torch": "2"},
    machine={"cores": 2},
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


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


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
        ({"schema_version": 0}, "schema_version=0; this regtune reads 1"),
        ({"surprise": 1}, r"unknown fields \['surprise'\]"),
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
    """A cell's folder with compact predictions in `p.json.gz`, and the questions beside the cells."""
    run_dir = folder / "cells" / "abc"
    content = compact_predictions(ROWS, texts=True)
    write_json(questions_file(folder, content["questions"]), ["q1", "q2"])
    write_json(run_dir / "p.json.gz", content | changes)
    return run_dir


def test_compact_predictions_are_read_like_the_rows_that_they_were_made_of(tmp_path):
    rows = read_predictions(exported(tmp_path), "p.json.gz")
    assert rows == [
        {"id": "q1", "text": "a", "exact_match": 1, "f1": 1},
        {"id": "q2", "text": "", "exact_match": 0, "f1": 0.6667},
    ]
    write_json(tmp_path / "run" / "p.json", ROWS)
    assert read_predictions(tmp_path / "run", "p.json") == ROWS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_match": "1"}, "does not fit its list of questions"),
        ({"exact_match": "1x"}, "is no predictions file"),
        ({"f1": [1.0]}, "does not fit its list of questions"),
        ({"questions": "../../secret"}, "is no hash of question ids"),
        ({"questions": "0123456789ab"}, "0123456789ab.json.gz can't be read"),
    ],
)
def test_compact_predictions_that_do_not_fit_their_questions_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_predictions(exported(tmp_path, **changes), "p.json.gz")


def test_a_list_of_questions_that_was_changed_is_refused(tmp_path):
    run_dir = exported(tmp_path)
    (file,) = (tmp_path / "questions").iterdir()
    write_json(file, ["q2", "q1"])
    with pytest.raises(DataError, match="does not fit its list of questions"):
        read_predictions(run_dir, "p.json.gz")


def test_the_code_itself_is_told_apart_where_the_version_is_the_same():
    assert re.fullmatch("[0-9a-f]{12}", versions()["regtune_source"])
    here = Path(records.__file__).parent
    assert all((here / part).is_dir() or part == "explorer" for part in records._DRAWING)


def test_versions_and_machine_say_where_a_number_was_measured():
    assert versions()["torch"].startswith("2.")
    assert machine()["cores"] >= 1
    assert machine()["memory_bytes"] > 0
