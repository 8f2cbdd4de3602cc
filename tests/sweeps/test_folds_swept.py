"""A sweep with folds: every cell knows its fold, no cell without folds changes, and a report joins them again."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.errors import CheckpointError, ConfigError
from regtune.folds import Fold, fold_of
from regtune.records import load_record, read_json
from regtune.report.collect import collect
from regtune.sweeps.export import export_cells
from regtune.sweeps.grid import load_sweep, sweep_from_dict, sweep_to_dict
from regtune.sweeps.sweep import plan_sweep, run_sweep
from regtune.sweeps.sweep_actions import carry_out
from sweeps.test_grid import MINIMAL, RECIPES
from tiny_sweep import fake_runs, tiny_sweep

FOLDED = {name: value for name, value in MINIMAL.items() if name != "evaluation_sets"} | {"folds": 3}


def folded(folder, **changes):
    """Three folds of eight questions, in two files."""
    plain = tiny_sweep(folder)
    given = {"training_sets": plain.training_sets, "evaluation_sets": (), "folds": 3}
    return tiny_sweep(folder, **(given | changes))


@pytest.fixture
def runs(monkeypatch):
    return fake_runs(monkeypatch)


def test_each_arm_and_seed_has_a_cell_for_each_fold_trained_on_all_others():
    sweep = sweep_from_dict(FOLDED | {"training_sets": {"t": ["a.json", "b.json"]}, "fold_seed": 5}, "my.yaml")
    cells = sweep.cells()
    assert [(c.seed, c.fold, c.num_registers) for c in cells] == [
        (s, f, n) for s in (0, 1) for f in (1, 2, 3) for n in (0, 4)
    ]
    assert len({cell.key for cell in cells}) == 12
    for cell in cells:
        own = Fold(sets=("a.json", "b.json"), number=cell.fold, count=3, seed=5)
        assert [fold_of(name) for name in cell.config.data.eval] == [own]
        assert [fold_of(name) for name in cell.config.data.train] == [dataclasses.replace(own, rest=True)]
    assert cells[1].label == "registers N=4 seed=0 fold=1 t"
    assert cells[1].describe()["fold"] == 1


def test_cells_without_folds_keep_the_keys_that_they_had_before_there_were_folds():
    """From the code before this axis."""
    keys = {
        name: [cell.key for cell in load_sweep(RECIPES / f"{name}.yaml").cells()]
        for name in ("ablation-last", "sst2-cpu")
    }
    assert keys["ablation-last"][:3] == ["4e9be97d1e67", "2b73b28d4452", "99054a7245ba"]
    assert keys["sst2-cpu"][:2] == ["3e3a3950b558", "7ba4aef75dec"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"folds": 1}, "folds"),
        ({"folds": 0}, "folds"),
        ({"folds": 2.5}, "folds"),
        ({"evaluation_sets": ["embedded:dev"]}, r"folds=3 and evaluation_sets: .*pool these sets"),
        ({"at_best": ["sep_copies"]}, "folds=3 and at_best: N would be chosen on the examples that are scored"),
        (
            {"search": {"learning_rates": [1e-4], "register_learning_rates": [1e-3]}},
            "folds=3 and search: it would choose learning rates on examples that are scored",
        ),
        ({"training_sets": {"t": ["a|b.json"]}}, "in its name"),
        ({"training_sets": {"t": ["fold:1/2:a.json"]}}, "must be written fold:"),
        ({"training_sets": {"t": ["a.json", "a.json"]}}, "names a set twice"),
        ({"training_sets": {"t": []}}, "training_sets.t names no data set"),
        (
            {"folds": None, "fold_seed": 1, "evaluation_sets": ["embedded:dev"]},
            "fold_seed=1 means nothing without folds",
        ),
        ({"folds": None}, "evaluation_sets holds nothing"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(changed, words):
    with pytest.raises(ConfigError, match=words):
        sweep_from_dict(FOLDED | changed, "my.yaml")


def test_a_plan_names_the_pool():
    plan = {"num_registers": [4], "metric": "f1", "seeds": 2, "weights": "last", "delta": 0.01}
    sets = {"training_sets": {"t": ["x/a.json", "x/b.json.gz"]}}
    assert sweep_from_dict(FOLDED | sets | {"plan": plan | {"on": "a+b"}}, "my.yaml").plan.on == "a+b"
    with pytest.raises(ConfigError, match=r"it has a\+b"):
        sweep_from_dict(FOLDED | sets | {"plan": plan | {"on": "a"}}, "my.yaml")


def test_a_sweep_with_folds_survives_the_way_through_sweep_json():
    sweep = sweep_from_dict(FOLDED, "my.yaml")
    assert sweep_from_dict(sweep_to_dict(sweep), "sweep.json") == sweep


def test_a_dry_run_lists_every_fold_and_a_sweep_that_goes_on_repeats_none(tmp_path, runs):
    sweep = folded(tmp_path)
    plan, _ = plan_sweep(sweep, tmp_path / "s")
    assert sorted(part.cell.fold for part in plan) == [1, 1, 2, 2, 3, 3]
    for seeds in ((0,), (0, 1)):
        run_sweep(dataclasses.replace(sweep, seeds=seeds), tmp_path / "s", progress=False)
    assert len(runs) == len(set(runs)) == 12
    assert {cell["fold"] for cell in read_json(tmp_path / "s" / "sweep.json")["cells"]} == {1, 2, 3}


@pytest.mark.parametrize("changed", [{"folds": 4}, {"fold_seed": 1}])
def test_other_folds_in_the_same_folder_are_refused(tmp_path, runs, changed):
    sweep = folded(tmp_path)
    run_sweep(sweep, tmp_path / "s", progress=False)
    with pytest.raises(CheckpointError, match=f"different: {next(iter(changed))}"):
        run_sweep(dataclasses.replace(sweep, **changed), tmp_path / "s", progress=False)


def test_more_folds_than_passages_fail_with_both_numbers(tmp_path):
    outcome = run_sweep(folded(tmp_path, folds=9, arms=("baseline",)), tmp_path / "s", progress=False)
    assert len(outcome.failed) == 9
    assert all("9 folds need 9 groups of examples at least" in why for why in outcome.failed.values())


def test_trained_and_scored_fold_by_fold_and_joined_again_also_from_an_export(tmp_path):
    """The real thing, on a tiny model: every question is scored once, by a model that never saw its passage."""
    sweep = folded(tmp_path, keep_models="none")
    assert len(run_sweep(sweep, tmp_path / "s", progress=False).finished) == 6
    for cell in sweep.cells():
        record = load_record(tmp_path / "s" / cell.key)
        (name,) = record.metrics
        assert name == f"train-fold-{cell.fold}-of-3"
        assert record.data["train"]["examples"] + record.data[name]["examples"] == 8
    export_cells(tmp_path / "s", tmp_path / "e")
    for folder in (tmp_path / "s", tmp_path / "e"):
        (group,) = collect(folder).groups
        assert [cell.arm.label for cell in group.cells] == ["baseline", "registers, N = 2"]
        assert group.train_name == "tiny"
        for cell in group.cells:
            assert len(cell.parts) == 3
            assert len(cell.scored["train"].place) == 8
            weights = [part.record.data[f"train-fold-{i}-of-3"]["examples"] for i, part in enumerate(cell.parts, 1)]
            values = [part.record.metrics[f"train-fold-{i}-of-3"]["f1"] for i, part in enumerate(cell.parts, 1)]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / 8
            assert cell.record.metrics["train"]["f1"] == pytest.approx(mean, abs=2e-4)


def test_the_recipe_with_folds_has_ten_cells_for_each_arm_and_seed():
    sweep = load_sweep(RECIPES / "qa-folds.yaml")
    cells = sweep.cells()
    assert sweep.folds == 10
    assert len(cells) == 2 * len(sweep.seeds) * 10
    assert {cell.fold for cell in cells} == set(range(1, 11))
    assert sweep.plan.on == "en.train+en.dev"
    assert "fold=10" in carry_out(str(RECIPES / "qa-folds.yaml"), dry_run=True).text
