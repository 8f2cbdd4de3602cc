"""Sweeps over strengths of noise and over languages, from the recipe to the page, on tiny models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from regtune.report.page import write_report
from regtune.sweeps.grid import load_sweep
from regtune.sweeps.sweep import run_sweep
from tiny_sweep import tiny_sweep

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


def test_the_recipe_trains_each_language_alone_one_for_all_the_others_and_all_together():
    recipe = load_sweep(RECIPES / "languages.yaml")
    assert {"en", "all"} < set(recipe.training_sets)
    alone = {name: sets for name, sets in recipe.training_sets.items() if name != "all"}
    assert set(recipe.training_sets["all"]) == {file for sets in alone.values() for file in sets}
    assert recipe.base.model == "e5-multilingual"
    assert len(recipe.evaluation_sets) == 9 + 12
    assert len(recipe.cells()) == len(recipe.training_sets) * len(recipe.seeds) * len(recipe.num_registers)
