"""Sweeps over strengths of noise and over languages, from the recipe to the page, on tiny models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regtune.report.page import write_report
from regtune.sweeps.grid import load_sweep
from regtune.sweeps.sweep import run_sweep
from tiny_sweep import tiny_sweep
from tiny_tokenizer import save_questions

RECIPES = Path(__file__).parents[2] / "recipes"


def test_a_sweep_over_strengths_of_noise_gives_its_curve(tmp_path):
    pytest.importorskip("matplotlib")
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    (dev,) = sweep.evaluation_sets
    sets = (dev, *(f"noise:keyboard={strength},in=question:{dev}" for strength in (0.5, 1)))
    sweep = dataclasses.replace(sweep, evaluation_sets=sets)
    outcome = run_sweep(sweep, tmp_path / "sweep", progress=False)
    assert not outcome.failed
    page = write_report(tmp_path / "sweep", resamples=600, progress=False)
    assert "Robustness to noise" in page.read_text(encoding="utf-8")
    written = {path.name for path in page.parent.rglob("*") if path.is_file()}
    assert "robustness-keyboard-in-question-on-dev.svg" in " ".join(written)
    table = next(path for path in page.parent.rglob("*robustness-f1*.csv"))
    assert len(table.read_text().splitlines()) == 1 + 3 * 2


def test_the_recipe_for_languages_fills_its_table_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    recipe, tiny = load_sweep(RECIPES / "languages.yaml"), tiny_sweep(tmp_path)
    files = {
        name: tuple(str(tmp_path / Path(file).name) for file in sets) for name, sets in recipe.training_sets.items()
    }
    dev = [str(tmp_path / Path(file).name.replace(".json.gz", ".json")) for file in recipe.evaluation_sets[:3]]
    training = {name: tuple(file.removesuffix(".gz") for file in sets) for name, sets in files.items()}
    for file in {*dev, *(file for sets in training.values() for file in sets)}:
        language = Path(file).name[:2]
        save_questions(Path(file), 6)
        text = Path(file).read_text(encoding="utf-8")
        Path(file).write_text(text.replace('"id": "q', f'"id": "{language}-q'), encoding="utf-8")
    sweep = dataclasses.replace(
        recipe,
        num_registers=(0, 2),
        seeds=(0, 1),
        training_sets={name: training[name] for name in ("en", "all")},
        evaluation_sets=tuple(dev),
        base=tiny.base,
        keep_models="none",
    )
    folder = tmp_path / "sweep"
    first = dataclasses.replace(sweep, seeds=(0,))
    assert len(run_sweep(first, folder, progress=False).finished) == 4
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}
    outcome = run_sweep(sweep, folder, progress=False)
    assert len(outcome.finished) == 8
    assert not outcome.failed
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    page = write_report(folder, resamples=600, progress=False)
    text = page.read_text(encoding="utf-8")
    assert "Best N by language" in text
    assert "the best N, by language and by what was trained on" in text
    assert "zero-shot" in text


def test_the_recipe_trains_each_language_alone_one_for_all_the_others_and_all_together():
    recipe = load_sweep(RECIPES / "languages.yaml")
    assert {"en", "all"} < set(recipe.training_sets)
    alone = {name: sets for name, sets in recipe.training_sets.items() if name != "all"}
    assert set(recipe.training_sets["all"]) == {file for sets in alone.values() for file in sets}
    assert recipe.base.model == "e5-multilingual"
    assert len(recipe.evaluation_sets) == 9 + 12
    assert len(recipe.cells()) == len(recipe.training_sets) * len(recipe.seeds) * len(recipe.num_registers)
