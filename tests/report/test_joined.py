"""The folds of one seed are one run of the report: every example counted once, seeds crossed with examples."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from regtune.config import config_hash
from regtune.folds import Fold
from regtune.records import read_json, write_json
from regtune.report.collect import collect
from regtune.report.page import build_report, draw
from regtune.report.scores import Settings
from report.synthetic import config_of, write_cell, write_plan

SETS, COUNT, EACH = ("x/a.json", "x/b.json.gz"), 4, 40


def write_folds(folder, *, seeds=(0, 1, 2), effect=0.0, only=None, plans=()):
    """Baseline and N = 4, each with every seed and fold."""
    places = []
    for seed in seeds:
        for number in range(1, COUNT + 1):
            own = Fold(sets=SETS, number=number, count=COUNT)
            rest = dataclasses.replace(own, rest=True)
            for arm, n in (("baseline", 0), ("registers", 4)):
                config = config_of(arm, n, seed)
                data = dataclasses.replace(config.data, train=(rest.name,), eval=(own.name,))
                config = dataclasses.replace(config, data=data)
                places.append((config_hash(config), arm, n, seed, "t"))
                if only is None or only(n, seed, number):
                    write_cell(folder, config, effect=effect if n else 0.0, questions=EACH, prefix=f"f{number}-")
    write_plan(folder, *places, training_sets={"t": list(SETS)})
    content = read_json(folder / "sweep.json")
    for number, cell in enumerate(content["cells"]):
        cell["fold"] = number // 2 % COUNT + 1
    write_json(folder / "sweep.json", content | {"plans": list(plans)})
    return folder


def report(folder):
    return build_report(collect(folder), settings=Settings(resamples=400))


def test_seeds_and_examples_are_counted_as_in_a_sweep_without_folds(tmp_path):
    found = report(write_folds(tmp_path, effect=0.2))
    (section,) = found.results
    top = section.headline
    assert top.basis.startswith(f"F1 on a+b, {COUNT * EACH} questions, 3 seeds in each arm, paired by seed")
    assert (
        "Cross-validated in 4 folds: each of the questions is scored by runs that were trained on the other"
        in top.basis
    )
    assert "Nadeau and Bengio (2003)" in top.basis
    assert top.verdict == "helps"
    assert section.title.startswith("t: ")
    assert section.title.endswith("trained on a.json + b.json.gz")


def test_the_score_of_a_joined_run_is_that_of_all_its_examples(tmp_path):
    write_folds(tmp_path, seeds=(0, 1))
    for cell in collect(tmp_path).cells:
        values = [next(iter(part.record.metrics.values()))["f1"] for part in cell.parts]
        assert cell.record.metrics["a+b"]["f1"] == pytest.approx(sum(values) / COUNT)
        assert len(cell.scored["a+b"].place) == COUNT * EACH
        assert sorted(set(cell.scored["a+b"].folds)) == [1, 2, 3, 4]
        assert "folds" in cell.settings


def test_a_seed_with_a_fold_missing_is_not_used_and_the_fold_is_named(tmp_path):
    sweep = collect(write_folds(tmp_path, only=lambda n, seed, fold: (n, seed) != (4, 2) or fold not in (2, 3)))
    (group,) = sweep.groups
    assert [(cell.arm.num_registers, cell.seed) for cell in group.cells] == [(0, 0), (0, 1), (0, 2), (4, 0), (4, 1)]
    why = dict(sweep.skipped)["registers, N = 4, seed 2"]
    assert why == "2 of its 4 folds are not finished (2, 3), so it isn't used yet"
    assert "2 of its 24 planned cells are missing (registers, N = 4: seed 2 (folds 2, 3))" in " ".join(group.gaps)
    assert sweep.not_begun == ("registers, N = 4, trained on t: seed 2 (folds 2, 3)",)


def test_an_example_in_two_folds_is_found(tmp_path):
    write_folds(tmp_path, seeds=(0, 1))
    changed = next(cell for cell in collect(tmp_path).cells if cell.seed == 1)
    second = changed.parts[1].folder
    (path,) = (second / "predictions").iterdir()
    rows = read_json(path)
    write_json(path, [row | {"id": row["id"].replace("f2-", "f1-")} for row in rows])
    content = read_json(second / "run.json")
    write_json(second / "run.json", content | {"files": {}})
    assert "are in two of its folds" in dict(collect(tmp_path).skipped)[f"{changed.arm.label}, seed 1"]


def test_the_same_fold_twice_is_used_once(tmp_path):
    write_folds(tmp_path, seeds=(0, 1))
    first = collect(tmp_path).cells[0].parts[0].folder
    shutil.copytree(first, tmp_path / "zz-again")
    sweep = collect(tmp_path)
    assert dict(sweep.skipped)["zz-again"] == f"the same arm, seed and fold as {first.name}, which is used"


def test_a_planned_comparison_of_folds_is_called_planned_and_every_run_is_listed(tmp_path):
    plan = {"arm": "registers", "training_set": "", "num_registers": [0, 4], "on": "a+b", "metric": "f1", "seeds": 3}
    plan |= {"weights": "last", "delta": 0.01}
    version = {"plan": plan, "written": "2025-12-31T00:00:00+00:00", "begun": 0}
    found = report(write_folds(tmp_path, plans=[version]))
    assert found.results[0].headline.planned.startswith("Planned: registers at N = 4 against baseline, by F1 on a+b;")
    tables = draw(found)["tables.md"]
    assert tables.count("and 3 more folds") == 6
    assert "x/a.json, x/b.json.gz" in tables
    assert "| folds | all | 4 | none |" in " ".join(tables.split())
