"""The tables of all tasks follow the sweeps that are there, each with its own plan."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from regtune.config import config_hash
from regtune.records import read_json, write_json
from regtune.report.scores import Settings
from report.synthetic import config_of, write_cell, write_plan

DOCS = Path(__file__).parents[2] / "docs"
PLAN = {
    "num_registers": [4], "on": "dev", "metric": "f1", "seeds": 4, "weights": "last", "delta": 0.01,
    "arm": "registers", "training_set": "",
}  # fmt: skip


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The module, reading two made-up sweeps: N = 4 helps in the first alone; each has a plan."""
    monkeypatch.syspath_prepend(str(DOCS))
    ablation, module = importlib.import_module("ablation_results"), importlib.import_module("tasks_results")
    folder = tmp_path / "docs" / "results" / "tasks"
    for name, effect in (("first", 0.4), ("second", 0.0)):
        places = []
        for seed in range(4):
            for arm, count in (("baseline", 0), ("registers", 4)):
                config = config_of(arm, count, seed, sets=(f"{name}/dev.json",))
                config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=(f"{name}.json",)))
                write_cell(folder / name / "cells", config, effect=effect if count else 0.0, questions=60)
                places.append((config_hash(config), arm, count, seed, name))
        write_plan(folder / name, *places, training_sets={name: [f"{name}.json"]})
        content = read_json(folder / name / "sweep.json")
        written = {"plan": PLAN, "written": "2025-12-31T00:00:00+00:00", "begun": 0}
        write_json(folder / name / "sweep.json", content | {"plans": [written]})
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(ablation, "Settings", lambda: Settings(resamples=500))
    return module


def test_the_readme_block_has_a_sentence_a_task_and_a_row_an_arm(tasks):
    text = tasks.verdicts()
    sentences = text[: text.index("|")].strip().splitlines()
    assert [line.split(": ")[0] for line in sentences] == ["- **first**", "- **second**"]
    assert "Registers help at N = 4" in sentences[0]
    assert "Registers help" not in sentences[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text[text.index("|") :].splitlines()]
    assert {len(row) for row in rows} == {7}
    assert [(row[0].split(",")[0], row[1]) for row in rows[2:]] == [
        ("first", "baseline"),
        ("first", "registers, N = 4"),
        ("second", "baseline"),
        ("second", "registers, N = 4"),
    ]


def test_the_page_says_of_each_task_what_was_planned(tasks):
    planned = re.findall(r"^Planned: registers at N = 4 against baseline, by F1 on dev; 4 seeds", tasks.details(), re.M)
    assert len(planned) == 2
    assert "regtune\\_source" in tasks.how() or "regtune_source" in tasks.how()


def test_the_report_has_the_tasks_in_columns_and_lies_beside_them(tasks):
    made = tasks.report_files()
    page = made[tasks.FOLDER / "report.html"].decode()
    assert page.index("All at a glance") < page.index("How it was done")
    assert page.index("first: ") < page.index("second: ")


def test_without_a_finished_cell_nothing_is_claimed(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    assert tasks.verdicts() == tasks.details() == tasks.how() == "No cell is finished yet."
    assert tasks.report_files() == {}
