"""A plan is what was written down before the first run: it is dated, kept, and every change of it is seen."""

from __future__ import annotations

import dataclasses
import json

import pytest

from regtune.errors import ConfigError, RegtuneError
from regtune.records import read_json
from regtune.sweeps.grid import load_sweep, sweep_from_dict, sweep_to_dict
from regtune.sweeps.plan import Plan, PlanVersion, changes, history, planned
from regtune.sweeps.sweep import plan_lines, read_sweep_file, run_sweep
from regtune.sweeps.sweep_actions import carry_out
from regtune.tasks.qa.task import F1
from sweeps.test_grid import MINIMAL, RECIPES
from tiny_sweep import fake_runs, tiny_sweep

PLAN = {"num_registers": [0, 4], "on": "embedded-dev", "metric": "f1", "seeds": 2, "weights": "last", "delta": 0.01}


def plan(**changed) -> Plan:
    given = {"num_registers": (2,), "on": "dev", "metric": "f1", "seeds": 2, "weights": "last", "delta": 0.01}
    return Plan(**(given | changed))


@pytest.fixture
def runs(monkeypatch):
    return fake_runs(monkeypatch)


def test_a_plan_is_written_with_the_time_before_the_first_cell_starts(tmp_path, monkeypatch):
    from regtune.sweeps import cell_run

    seen = []

    def look(cell, run_dir, **_):
        seen.append(read_sweep_file(run_dir.parent).plans)
        raise RuntimeError("enough")

    monkeypatch.setattr(cell_run, "_run", look)
    run_sweep(tiny_sweep(tmp_path, seeds=(0, 1), plan=plan()), tmp_path / "s", progress=False)
    ((first,), *_) = seen
    assert first.plan == plan()
    assert first.begun == 0
    assert first.written.endswith("+00:00")


def test_a_plan_changes_no_cell(tmp_path):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    assert dataclasses.replace(sweep, plan=plan()).cells() == sweep.cells()


def test_a_sweep_that_goes_on_keeps_the_plan_and_its_time(tmp_path, runs):
    for seeds in ((0, 1), (0, 1, 2)):
        run_sweep(tiny_sweep(tmp_path, seeds=seeds, plan=plan()), tmp_path / "s", progress=False)
    (only,) = read_sweep_file(tmp_path / "s").plans
    assert only.begun == 0


def test_a_changed_plan_is_recorded_with_its_time_and_the_cells_that_had_begun(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1), num_registers=(2, 3), plan=plan())
    run_sweep(sweep, tmp_path / "s", progress=False)
    other = dataclasses.replace(sweep, plan=plan(num_registers=(3,)))
    assert "Not in sweep.json yet" in plan_lines(other, tmp_path / "s")[-1]
    run_sweep(other, tmp_path / "s", progress=False)
    first, second = read_sweep_file(tmp_path / "s").plans
    assert (first.begun, second.begun) == (0, len(sweep.cells()))
    assert planned((first, second)) == first
    lines = plan_lines(other, tmp_path / "s")
    assert lines[0].startswith("Plan: registers at N = 2 against baseline, by F1 on dev; 2 seeds in each arm; ")
    assert lines[0].endswith("before the first cell.")
    assert "Plan changed (num_registers from 2 to 3)" in lines[1]
    assert "after 6 cells had begun" in lines[1]


def test_a_plan_that_goes_is_recorded_too_and_one_that_comes_late_was_not_planned(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    run_sweep(sweep, tmp_path / "s", progress=False)
    assert read_sweep_file(tmp_path / "s").plans == []
    for each in (plan(), None):
        run_sweep(dataclasses.replace(sweep, plan=each), tmp_path / "s", progress=False)
    late, gone = read_sweep_file(tmp_path / "s").plans
    assert (late.begun, gone.plan) == (4, None)
    assert planned((late,)) is None
    assert planned((late, gone)) is None
    assert history((late, gone), (F1,))[1].startswith("Plan withdrawn")


def test_removing_the_file_does_not_make_a_late_plan_an_early_one(tmp_path, runs):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1))
    run_sweep(sweep, tmp_path / "s", progress=False)
    (tmp_path / "s" / "sweep.json").unlink()
    run_sweep(dataclasses.replace(sweep, plan=plan()), tmp_path / "s", progress=False)
    assert read_sweep_file(tmp_path / "s").plans[0].begun == 4


def test_a_run_that_started_before_the_plan_was_written_is_a_second_witness():
    version = PlanVersion(plan=plan(), written="2026-01-02T00:00:00+00:00", begun=0)
    assert planned([version], ["2026-01-02T00:00:01+00:00"]) == version
    assert planned([version], ["2026-01-03T00:00:00+00:00", "2026-01-01T00:00:00+00:00"]) is None


def test_of_versions_before_the_first_run_the_last_counts_and_a_withdrawn_plan_is_none():
    early = [PlanVersion(plan=plan(seeds=n), written=f"2026-01-0{n}", begun=0) for n in (2, 3)]
    assert planned(early) == early[1]
    assert planned([*early, PlanVersion(plan=None, written="2026-01-04", begun=0)]) is None
    assert planned([]) is None


def test_what_changed_is_named_with_both_values():
    assert (
        changes(plan(), plan(delta=0.02, num_registers=())) == "num_registers from 2 to none, delta from 0.01 to 0.02"
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"arm": "mask_copies"}, "plan.arm='mask_copies' is none of the sweep's arms beside baseline: registers"),
        ({"arm": "baseline"}, "plan.arm='baseline' is none of"),
        ({"num_registers": [8]}, r"plan.num_registers=\[8\], but the arm 'registers' has num_registers=\[0, 4\]"),
        ({"num_registers": []}, r"plan.num_registers=\[\], but the arm 'registers' has"),
        ({"num_registers": [0]}, "names no N but 0"),
        ({"num_registers": [4, 4]}, "names an N twice"),
        ({"on": "en.dev"}, "plan.on='en.dev' is no evaluation set of this sweep; it has embedded-dev"),
        ({"metric": "f2"}, "plan.metric='f2' is no metric of the task; it has f1, exact_match"),
        ({"training_set": "u"}, "plan.training_set='u' must be one of t"),
        ({"seeds": 3}, "plan.seeds=3, but the sweep has 2 seeds"),
        ({"seeds": 1}, "plan.seeds"),
        ({"weights": "held_out"}, "plan.weights='held_out', but base.training.checkpoint='last' scores 'last'"),
        ({"weights": "best"}, "Unknown value for plan.weights"),
        ({"delta": 0}, "plan.delta"),
        ({"delta": 1}, "plan.delta=1 must be below 1 for F1"),
        ({"alpha": 0.1}, "plan.alpha"),
    ],
)
def test_a_plan_that_these_cells_cannot_carry_out_is_refused(changed, words):
    with pytest.raises(ConfigError, match=words):
        sweep_from_dict(MINIMAL | {"plan": PLAN | changed}, "my.yaml")


def test_a_plan_says_everything_that_could_be_chosen_afterwards():
    for name in PLAN:
        with pytest.raises(ConfigError, match=f"plan.{name} is missing"):
            sweep_from_dict(MINIMAL | {"plan": {k: v for k, v in PLAN.items() if k != name}}, "my.yaml")


def test_of_several_training_sets_one_is_planned():
    sets = {"t": ["embedded:train"], "u": ["u.json"]}
    with pytest.raises(ConfigError, match=r"plan\.training_set='' must be one of t, u"):
        sweep_from_dict(MINIMAL | {"plan": PLAN, "training_sets": sets}, "my.yaml")
    found = sweep_from_dict(MINIMAL | {"plan": PLAN | {"training_set": "u"}, "training_sets": sets}, "my.yaml")
    assert ", trained on u" in found.plan.words((F1,))


def test_a_plan_survives_the_way_through_sweep_json():
    sweep = sweep_from_dict(MINIMAL | {"plan": PLAN}, "my.yaml")
    assert sweep_from_dict(json.loads(json.dumps(sweep_to_dict(sweep))), "sweep.json") == sweep


def test_a_plan_in_sweep_json_that_was_damaged_is_named(tmp_path, runs):
    run_sweep(tiny_sweep(tmp_path, seeds=(0, 1), plan=plan()), tmp_path / "s", progress=False)
    path = tmp_path / "s" / "sweep.json"
    content = read_json(path)
    for damage in ({"begun": "no"}, {"written": 3}, {"plan": {"on": "dev"}}, {"plan": []}):
        path.write_text(json.dumps(content | {"plans": [content["plans"][0] | damage]}))
        with pytest.raises(RegtuneError, match=r"sweep\.json: plans\[0\]"):
            read_sweep_file(tmp_path / "s")


def test_the_terminal_shows_the_plan_before_and_after(tmp_path, monkeypatch, runs):
    sweep = tiny_sweep(tmp_path, seeds=(0, 1), plan=plan())
    (tmp_path / "my.yaml").write_text(json.dumps(sweep_to_dict(sweep)).replace('"plan"', '\n"plan"'))
    content = json.loads((tmp_path / "my.yaml").read_text())
    for name in ("train", "eval"):
        content["base"]["data"].pop(name)
    content["base"].pop("output_dir")
    (tmp_path / "my.yaml").write_text(json.dumps(content))
    assert load_sweep(tmp_path / "my.yaml").plan == plan()
    before = carry_out(str(tmp_path / "my.yaml"), tmp_path / "s", dry_run=True).text
    assert before.startswith("Plan: registers at N = 2 against baseline, by F1 on dev;")
    assert "Not in sweep.json yet" in before
    after = carry_out(str(tmp_path / "my.yaml"), tmp_path / "s").text
    assert "before the first cell." in after


def test_the_planned_recipe_has_two_arms_of_ten_seeds_and_a_plan_for_one_comparison():
    sweep = load_sweep(RECIPES / "qa-planned.yaml")
    cells = [(cell.arm, cell.num_registers) for cell in sweep.cells()]
    assert (len(cells), cells.count(("baseline", 0)), cells.count(("registers", 8))) == (20, 10, 10)
    assert sweep.plan.compared == (8,)
    assert sweep.plan.seeds == 10
