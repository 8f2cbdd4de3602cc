"""Every arm gets the same search, on training paragraphs alone."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from regtune.config import DataConfig
from regtune.errors import ConfigError
from regtune.interfaces import Metric
from regtune.records import read_json, save_record
from regtune.sweeps import run as experiment
from regtune.sweeps.grid import LearningRates, SearchConfig
from regtune.sweeps.plan import Plan
from regtune.sweeps.search import search_learning_rates, with_found_rates
from regtune.sweeps.sweep import best_num_registers
from regtune.tasks.qa.data.sources import load_questions
from regtune.tasks.qa.task import QuestionAnswering
from tiny_sweep import fake_runs, invented, tiny_sweep


@pytest.fixture
def runs(monkeypatch):
    return fake_runs(monkeypatch)


# The search for learning rates


@pytest.fixture
def searched(tmp_path, runs, monkeypatch):
    """Scores that are best at 0.02 and 0.3."""

    def scored(config, *, progress=True, inputs=None):
        runs.append(config)
        training, n = config.training, config.registers.num_registers
        f1 = 0.9 - abs(training.learning_rate - 0.02) - (abs(training.register_learning_rate - 0.3) if n else 0)
        save_record(config.output_dir, invented(config, f1=f1))

    monkeypatch.setattr(experiment, "run_experiment", scored)
    search = SearchConfig(
        learning_rates=(0.01, 0.02, 0.03), register_learning_rates=(0.1, 0.3), num_registers=5, held_out=3
    )
    return tiny_sweep(tmp_path, search=search, at_best=("sep_copies",), epochs=4.0)


def test_every_arm_gets_the_same_search_and_its_own_best_rates(tmp_path, searched, runs):
    found = read_json(search_learning_rates(searched, tmp_path / "s", progress=False))
    tried = [(row["arm"], row["learning_rate"], row["register_learning_rate"]) for row in found["rows"]]
    rates, own = (0.01, 0.02, 0.03), (0.1, 0.3)
    assert tried == [
        *(("baseline", rate, None) for rate in rates),
        *(("registers", rate, register) for rate in rates for register in own),
        *(("sep_copies", rate, None) for rate in rates),
    ]
    assert {row["num_registers"] for row in found["rows"] if row["arm"] != "baseline"} == {5}
    assert found["best"]["registers"] == {"learning_rate": 0.02, "register_learning_rate": 0.3}
    assert found["best"]["baseline"] == {"learning_rate": 0.02, "register_learning_rate": None}
    assert {config.training.epochs for config in runs} == {1.0}


def test_the_mean_over_the_seeds_decides_and_not_the_best_of_them(tmp_path, searched, runs, monkeypatch):
    def scored(config, *, progress=True, inputs=None):
        training = config.training
        lucky = 0.3 if (training.learning_rate, training.seed) == (0.03, 2) else 0.0
        save_record(config.output_dir, invented(config, f1=0.5 + lucky - abs(training.learning_rate - 0.02) * 20))

    monkeypatch.setattr(experiment, "run_experiment", scored)
    search = dataclasses.replace(searched.search, seeds=(1, 2, 3))
    sweep = dataclasses.replace(searched, search=search, arms=("baseline",), num_registers=(), at_best=())
    found = read_json(search_learning_rates(sweep, tmp_path / "s", progress=False))
    assert [(row["learning_rate"], row["seed"]) for row in found["rows"]] == [
        (rate, seed) for rate in (0.01, 0.02, 0.03) for seed in (1, 2, 3)
    ]
    assert max(found["rows"], key=lambda row: row["f1"])["learning_rate"] == 0.03
    assert found["best"]["baseline"]["learning_rate"] == 0.02
    assert found["seeds"] == [1, 2, 3]


def test_register_rates_at_the_best_rate_without_registers_give_each_arm_as_many_tries(tmp_path, searched):
    search = dataclasses.replace(searched.search, register_learning_rates=(0.1, 0.2, 0.3), register_rates_at="best")
    sweep = dataclasses.replace(searched, search=search, arms=("registers", "baseline", "registers+lora", "lora"))
    found = read_json(search_learning_rates(sweep, tmp_path / "s", progress=False))
    tried = [(row["arm"], row["learning_rate"], row["register_learning_rate"]) for row in found["rows"]]
    rates, own = (0.01, 0.02, 0.03), (0.1, 0.2, 0.3)
    assert tried == [
        *(("registers", 0.02, register) for register in own),
        *(("baseline", rate, None) for rate in rates),
        *(("registers+lora", 0.02, register) for register in own),
        *(("lora", rate, None) for rate in rates),
        *(("sep_copies", rate, None) for rate in rates),
    ]
    assert found["best"]["registers"] == {"learning_rate": 0.02, "register_learning_rate": 0.3}


def test_register_rates_at_the_best_rate_need_the_arm_without_registers(searched):
    search = dataclasses.replace(searched.search, register_rates_at="best")
    with pytest.raises(ConfigError, match=r"this sweep has none for 'registers\+lora'\. Add it to arms"):
        dataclasses.replace(searched, search=search, arms=("baseline", "registers", "registers+lora"))


def test_the_search_uses_held_out_training_paragraphs_and_no_evaluation_set(tmp_path, searched, runs, monkeypatch):

    whole = load_questions(tmp_path / "train.json").items
    record, parts = experiment.run_experiment, []

    def look(config, *, progress, inputs):
        learnt = inputs.examples(config.data.train, config, training=True)
        parts.append((learnt.items, inputs.examples(config.data.eval, config, training=False).items))
        return record(config)

    monkeypatch.setattr(experiment, "run_experiment", look)
    found = read_json(search_learning_rates(searched, tmp_path / "s", progress=False))
    thirds = set(list(dict.fromkeys(e.context for e in whole))[::3])
    held = tuple(e for e in whole if e.context in thirds)
    assert 0 < len(held) < len(whole)
    assert len(parts) == 12
    assert all(part == (tuple(e for e in whole if e not in held), held) for part in parts)
    assert (found["training_examples"], found["held_out_examples"]) == (len(whole) - len(held), len(held))
    assert found["held_out"] == "every 3th group of the training set tiny"


def classify_sweep(folder, **changes):
    sweep = tiny_sweep(folder)
    base = dataclasses.replace(sweep.base, task="classify", data=DataConfig(max_length=32), settings={})
    settings = {
        "base": base,
        "training_sets": {"classes": ("embedded:train",)},
        "evaluation_sets": ("embedded:dev",),
    }
    return dataclasses.replace(sweep, **(settings | changes))


def test_a_search_trains_and_scores_another_task_by_its_own_first_metric(tmp_path):
    search = SearchConfig(learning_rates=(1e-6, 0.01), register_learning_rates=(0.01,), num_registers=2)
    sweep = classify_sweep(tmp_path, search=search, arms=("baseline",), num_registers=())
    found = read_json(search_learning_rates(sweep, tmp_path / "s", progress=False))
    assert found["metric"] == "accuracy"
    assert (found["training_examples"], found["held_out_examples"]) == (102, 18)
    assert all({"accuracy", "macro_f1", "mcc"} <= row.keys() for row in found["rows"])
    best = max(found["rows"], key=lambda row: row["accuracy"])
    assert found["best"]["baseline"]["learning_rate"] == best["learning_rate"]


@pytest.mark.parametrize(("higher", "rate"), [(True, 0.02), (False, 0.01)])
def test_the_direction_of_the_metric_chooses_the_rates_and_the_number_of_registers(
    tmp_path, searched, monkeypatch, higher, rate
):
    metric = Metric(name="f1", title="F1", columns=("f1",), higher_is_better=higher)
    monkeypatch.setattr(QuestionAnswering, "metrics", (metric,))
    found = read_json(search_learning_rates(searched, tmp_path / "s", progress=False))
    assert found["best"]["baseline"]["learning_rate"] == rate

    sweep = dataclasses.replace(searched, num_registers=(2, 4))
    for cell in sweep.cells():
        scores = invented(cell.config, f1=cell.num_registers / 10)
        save_record(tmp_path / "cells" / cell.key, scores)
    assert best_num_registers(sweep, tmp_path / "cells") == {"tiny": 4 if higher else 2}


def test_a_sweep_with_a_plan_is_searched_too(tmp_path, searched):
    plan = Plan(num_registers=(2,), on="dev", metric="f1", seeds=2, weights="last", delta=0.01)
    sweep = dataclasses.replace(searched, seeds=(0, 1), plan=plan)
    assert len(read_json(search_learning_rates(sweep, tmp_path / "s", progress=False))["rows"]) == 12


def test_a_second_search_tries_nothing_again_and_leaves_no_runs_behind(tmp_path, searched, runs):
    search_learning_rates(searched, tmp_path / "s", progress=False)
    before = len(runs)
    search_learning_rates(searched, tmp_path / "s", progress=False)
    assert len(runs) == before == 12
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"search.json", "locks"}


def test_a_search_that_is_cut_short_keeps_its_rows_and_chooses_nothing(tmp_path, searched, runs, monkeypatch):
    record = experiment.run_experiment

    def cut(config, *, progress=True, inputs=None):
        if len(runs) == 7:
            raise KeyboardInterrupt
        return record(config)

    monkeypatch.setattr(experiment, "run_experiment", cut)
    with pytest.raises(KeyboardInterrupt):
        search_learning_rates(searched, tmp_path / "s", progress=False)
    shutil.rmtree(tmp_path / "s" / "search")  # on another machine there is the file alone
    found = read_json(tmp_path / "s" / "search.json")
    assert (len(found["rows"]), found["best"], found["finished"]) == (7, {}, False)
    with pytest.raises(ConfigError, match=r"isn't finished \(7 runs so far\). Go on with --search"):
        with_found_rates(searched, tmp_path / "s")
    monkeypatch.setattr(experiment, "run_experiment", record)
    found = read_json(search_learning_rates(searched, tmp_path / "s", progress=False))
    assert len(runs) == len(found["rows"]) == 12
    assert found["best"]["registers"] == {"learning_rate": 0.02, "register_learning_rate": 0.3}
    assert with_found_rates(searched, tmp_path / "s").learning_rates["baseline"].learning_rate == 0.02


def test_found_rates_apply_where_the_recipe_names_none(tmp_path, searched):
    search_learning_rates(searched, tmp_path / "s", progress=False)
    named = dataclasses.replace(searched, learning_rates={"registers": LearningRates(learning_rate=7.0)})
    rates = with_found_rates(named, tmp_path / "s").learning_rates
    assert rates["registers"].learning_rate == 7.0
    assert rates["baseline"].learning_rate == rates["sep_copies"].learning_rate == 0.02


def test_a_recipe_without_search_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="The recipe has no `search`"):
        search_learning_rates(tiny_sweep(tmp_path), tmp_path / "s")
