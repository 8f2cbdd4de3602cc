"""The ablation's tables follow the records that are there, whatever arms, N and seeds they have."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

from regtune.report.scores import Settings
from regtune.tasks.qa.data.squad import write_squad
from regtune.tasks.qa.examples import QAExample
from report.synthetic import write_plan, write_sweep

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """The module, reading a made-up ablation: N = 4 and 16, four seeds, two sets, a control, a planned cell open."""
    spec = importlib.util.spec_from_file_location("ablation_results", DOCS / "ablation_results.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablation_results", module)
    spec.loader.exec_module(module)
    folder = tmp_path / "docs" / "results" / "ablation"
    write_sweep(folder / "cells", effects={16: 0.3}, seeds=(0, 1, 2, 3), controls=("sep",), questions=60)
    write_plan(folder, ("none", "registers", 4, 4, "t"), training_sets={"t": ["en.train.json.gz"]})
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "FOLDER", folder)
    monkeypatch.setattr(module, "Settings", lambda: Settings(resamples=500))
    return module


def test_the_readme_block_has_the_verdict_and_a_row_for_every_n_that_was_found(ablation):
    text = ablation.verdict()
    assert text.startswith("**Registers help at N = 16: ")
    assert "16 runs; seeds of each arm: baseline: 4; registers, N = 4: 4; registers, N = 16: 4;" in text
    (table,) = re.findall(r"^\|(?:.*\n?\|)+.*$", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(row) for row in rows} == {6}
    assert [row[0] for row in rows[2:5]] == ["baseline", "registers, N = 4", "registers, N = 16"]
    assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d\d", row[1]) for row in rows[2:])
    assert re.fullmatch(r"\+\d+\.\d\d \(\+\d+\.\d\d to \+\d+\.\d\d\)", rows[4][2])
    assert rows[4][4] == "helps"
    assert "1 of its 1 planned cells is missing (registers, N = 4: seed 4)" in text
    assert text.index("<details>") > text.index("docs/results/ablation/figures/f1-by-registers.svg")


@pytest.mark.slow
def test_cells_of_the_last_epoch_stand_above_those_whose_weights_were_chosen(ablation):
    """The same cells serve as both here; only the order and the places are looked at."""
    shutil.copytree(ablation.FOLDER, ablation.FOLDER.with_name("ablation-last"))
    text = ablation.verdict()
    first, second = text.index("### Last epoch"), text.index("### Weights chosen on the reported set")
    assert first < text.index("docs/results/ablation-last/figures/f1-by-registers.svg") < second
    assert second < text.index("docs/results/ablation/figures/f1-by-registers.svg")
    assert ablation.how().count("### What each arm costs") == 2
    pages = {path.parent.name for path in ablation.report_files() if path.name == "report.html"}
    assert pages == {"ablation", "ablation-last"}


def test_the_page_holds_controls_sets_and_what_is_missing(ablation):
    assert "SEP\\] copies, N = 16 minus registers" in ablation.arms()
    assert "| arm | en.dev (en) | xquad.en (en) |" in ablation.sets()
    assert ablation.how().endswith("| registers, N = 4, trained on t: seed 4 |")


def test_the_report_is_the_same_every_time_and_older_files_are_named(ablation):
    made = ablation.report_files()
    assert made == ablation.report_files()
    page = ablation.FOLDER / "report.html"
    assert b"Registers help at N = 16" in made[page]
    old = ablation.FOLDER / "tables" / "old.csv"
    for path, content in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    old.write_text("x")
    assert ablation.stale_files(made, [ablation.FOLDER]) == [old]


def test_questions_of_a_data_set_that_lies_beside_the_repository_are_not_published(ablation, tmp_path, monkeypatch):
    (tmp_path / "tydiqa-goldp").mkdir()
    text = {"question": "Secret?", "context": "It is secret."}
    asked = [QAExample(id=f"q{i}", answers=(), is_impossible=True, **text) for i in range(60)]
    write_squad(asked, tmp_path / "tydiqa-goldp" / "en.dev.json.gz")
    monkeypatch.chdir(tmp_path)
    page = ablation.FOLDER / "report.html"
    assert b"Secret?" not in ablation.report_files()[page]
    monkeypatch.setattr(ablation, "_nowhere", contextlib.nullcontext)  # the test can fail
    assert b"Secret?" in ablation.report_files()[page]


def test_nothing_lies_beside_the_folder_in_which_reports_are_made(ablation):
    """Recipes name `../shared/data`, and somebody's temporary folder may have a `shared`."""
    with ablation._nowhere():
        assert list(Path("..").iterdir()) == [Path("..") / Path.cwd().name]
        assert list(Path().iterdir()) == []
