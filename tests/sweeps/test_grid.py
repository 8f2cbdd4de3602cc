"""A sweep recipe becomes exactly the cells that it names, and what cannot be a sweep is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from regtune.config import DataConfig, RegisterConfig, RunConfig, TrainConfig, config_hash
from regtune.errors import ConfigError, UnknownNameError
from regtune.recipes import resolved
from regtune.records import read_json
from regtune.sweeps.arms import ARMS
from regtune.sweeps.grid import LearningRates, SweepConfig, load_sweep, sweep_from_dict, sweep_to_dict

RECIPES = Path(__file__).parents[2] / "recipes"
MINIMAL = {
    "arms": ["baseline", "registers"],
    "num_registers": [0, 4],
    "seeds": [0, 1],
    "training_sets": {"t": ["embedded:train"]},
    "evaluation_sets": ["embedded:dev"],
}


def sweep(**changes) -> SweepConfig:
    return sweep_from_dict(MINIMAL | changes, "my.yaml")


def test_the_grid_is_arms_times_n_times_seeds_and_the_baseline_has_one_cell_for_all_n():
    cells = sweep(arms=["baseline", "registers", "sep_copies"], num_registers=[0, 4, 8]).cells()
    found = [(c.seed, c.arm, c.num_registers) for c in cells]
    one_seed = [("baseline", 0), ("registers", 4), ("registers", 8), ("sep_copies", 4), ("sep_copies", 8)]
    assert found == [(seed, *rest) for seed in (0, 1) for rest in one_seed]
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_cell_is_the_resolved_config_and_its_key_is_that_configs_hash():
    cell = sweep(base={"training": {"epochs": 2, "learning_rate": "2e-4"}}).cells()[3]
    expected = RunConfig(
        output_dir=Path("."),
        registers=RegisterConfig(num_registers=4),
        data=DataConfig(train=("embedded:train",), eval=("embedded:dev",)),
        training=TrainConfig(epochs=2.0, learning_rate=2e-4, seed=1, data_seed=1),
    )
    expected = resolved(expected)
    assert expected.settings["stride"] == 128
    assert (cell.arm, cell.config) == ("registers", expected)
    assert cell.key == config_hash(dataclasses.replace(expected, output_dir=Path("elsewhere")))


def test_arms_are_paired_by_seed():
    cells = sweep(arms=["baseline", "registers", "registers_only"]).cells()
    for cell in cells:
        assert cell.config.training.seed == cell.config.training.data_seed == cell.seed


def test_learning_rates_of_an_arm_change_that_arm_alone():
    plain, tuned = sweep(), sweep(learning_rates={"registers": {"learning_rate": 0.5}})
    changed = [a.arm for a, b in zip(plain.cells(), tuned.cells(), strict=True) if a.key != b.key]
    assert changed == ["registers", "registers"]
    training = tuned.cells()[1].config.training
    assert (training.learning_rate, training.register_learning_rate) == (0.5, TrainConfig().register_learning_rate)


def test_arms_at_the_best_n_have_cells_once_it_is_known():
    grid = sweep(at_best=["sep_copies", "warm_up_control"], methods={"warm_up": {"steps": 3}}, num_registers=[0, 4, 8])
    assert {cell.arm for cell in grid.cells()} == {"baseline", "registers"}
    extra = [c for c in grid.cells({"t": 8}) if c.arm not in ("baseline", "registers")]
    assert [(c.arm, c.num_registers) for c in extra] == [("sep_copies", 8), ("warm_up_control", 0)] * 2


def test_a_recipe_survives_the_way_through_sweep_json():
    grid = sweep(
        learning_rates={"registers": {"learning_rate": 1, "register_learning_rate": None}},
        search={"learning_rates": ["1e-4"], "register_learning_rates": [1]},
        base={"model": "m"},
        methods={"warm_up": {"steps": 3}},
        own_arms={"both": {"registers": {"init_std": 0.5}, "linear_probe": {}}},
    )
    assert sweep_from_dict(sweep_to_dict(grid), "sweep.json") == grid
    assert grid.learning_rates == {"registers": LearningRates(learning_rate=1.0)}


@pytest.mark.parametrize("name", ["arms", "seeds", "training_sets", "evaluation_sets"])
def test_an_empty_sweep_is_refused(name):
    empty = {} if name == "training_sets" else []
    with pytest.raises(ConfigError, match=rf"my\.yaml: The sweep is empty: {name} holds nothing"):
        sweep(**{name: empty})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 1]}, "seeds names 1 more than once"),
        ({"seeds": [0, 0.5]}, r"seeds\[1\] is 0\.5, but must be a whole number"),
        ({"seeds": [True]}, "seeds.0. is True, but must be a whole number"),
        ({"seeds": [-1]}, "seeds=.-1,. must be"),
        ({"num_registers": [4, 4]}, "num_registers names 4 more than once"),
        ({"num_registers": [0]}, r"'registers' has registers, but num_registers=\[0\] holds no positive number"),
        ({"arms": ["registers"]}, "num_registers holds 0, which is the arm 'baseline'"),
        ({"arms": ["registers", "registers"]}, "arms names registers more than once"),
        ({"at_best": ["registers"]}, "arms and at_best together names registers more than once"),
        ({"arms": ["baseline"], "at_best": ["sep_copies"]}, "at_best needs the arm 'registers'"),
        ({"base": {"methods": {"linear_probe": {}}}}, r"base\.methods=\['linear_probe'\]: name an arm that uses them"),
        ({"own_arms": {"mine": {"lora_": {}}}, "arms": ["baseline", "registers", "mine"]}, "Unknown method 'lora_'"),
        (
            {"own_arms": {"mine": {"warm_up": {"stepps": 3}}}, "arms": ["baseline", "registers", "mine"]},
            r"Unknown setting in methods\.warm_up: 'stepps'\. Did you mean 'steps'\?",
        ),
        ({"training_sets": {"t": []}}, r"training_sets\.t names no data set"),
        ({"training_sets": ["embedded:train"]}, "must be a mapping with settings of its own"),
        ({"evaluation_sets": "embedded:dev"}, "must be a list, like"),
        ({"evaluation_sets": ["a/dev.json", "b/dev.json.gz"]}, "names dev more than once"),
        ({"base": {"data": {"train": ["x.json"]}}}, "name training sets under training_sets"),
        ({"base": {"training": {"seed": 3}}}, "seed and data_seed come from seeds"),
        (
            {"learning_rates": {"registers": {"learning_rate": "fast"}}},
            r"registers\.learning_rate is 'fast', but must be a number",
        ),
        ({"learning_rates": {"registers": {}}}, "learning_rates.registers.learning_rate is missing"),
        ({"search": {"learning_rates": []}}, "search.register_learning_rates is missing"),
        ({"search": {"learning_rates": [1], "register_learning_rates": [1], "held_out": 1}}, "held_out=1"),
        ({"keep_models": "some"}, "Unknown value for keep_models in my.yaml: 'some'"),
        ({"arms": ["registers", "every_layer", "baseline"], "base": {"registers": {"depth": "every_layer"}}}, "same"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(**changes).cells()


def test_arms_with_different_evaluation_sets_cannot_be_written_down():
    with pytest.raises(ConfigError, match="every arm has to be scored on the same sets"):
        sweep(base={"data": {"eval": ["other.json"]}})


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"arms": ["baselin"]}, "Did you mean 'baseline'"),
        ({"seed": [1]}, "Did you mean 'seeds'"),
        ({"base": {"modle": "x"}}, "Did you mean 'base.model'"),
        ({"learning_rates": {"register": {"learning_rate": 1}}}, "Did you mean 'registers'"),
    ],
)
def test_wrong_names_get_the_nearest_right_one(changes, hint):
    with pytest.raises(ConfigError, match=hint):
        sweep(**changes)


def test_a_recipe_without_seeds_says_what_is_missing(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "seeds"}))
    with pytest.raises(ConfigError, match=r"my\.yaml: seeds is missing"):
        load_sweep(path)


def test_an_unknown_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "ablation.yaml").write_text("{}")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'ablation\.yaml'"):
        load_sweep("ablatoin")


def test_the_controls_recipe_shares_its_cells_and_its_folder_with_the_grid(tmp_path):
    from regtune.sweeps.sweep import check_folder, open_folder

    grid, controls = (load_sweep(RECIPES / f"ablation-minilm-{name}.yaml") for name in ("cpu", "controls-cpu"))
    open_folder(grid, tmp_path)
    check_folder(controls, tmp_path)
    open_folder(controls, tmp_path)
    check_folder(grid, tmp_path)
    keys = {cell.key: cell for cell in grid.cells()}
    own = [cell for cell in controls.cells() if cell.key not in keys]
    assert {cell.arm for cell in own} == {"frozen_random", "sep_copies", "mask_copies", "every_layer"}
    assert {(cell.arm, cell.num_registers) for cell in controls.cells() if cell.key in keys} == {
        ("baseline", 0),
        ("registers", 4),
    }
    planned = {cell["key"] for cell in read_json(tmp_path / "sweep.json")["cells"]}
    assert planned == keys.keys() | {cell.key for cell in own}


def test_every_arm_that_the_question_needs_exists():
    assert set(ARMS) == {
        *("baseline", "registers", "frozen_random", "sep_copies", "mask_copies", "every_layer"),
        *("registers_only", "prompt_tuning", "sink_logits", "test_time_registers", "linear_probe"),
        *("warm_up_all", "warm_up_registers", "warm_up_control"),
    }


def test_the_recipes_that_come_with_regtune_hold_the_promised_grids():
    cpu = load_sweep(RECIPES / "ablation-minilm-cpu.yaml")
    assert {"baseline", "registers"} <= set(cpu.arms)
    assert {0, 4, 16} <= set(cpu.num_registers)
    assert len(cpu.seeds) == 5
    for name, train in (("full", 1), ("full-with-new-wiki", 2)):
        full = load_sweep(RECIPES / f"ablation-minilm-{name}.yaml")
        (sets,) = full.training_sets.values()
        assert len(sets) == train
        assert full.num_registers == (0, 1, 2, 4, 8, 16, 32, 64, 100)
        assert full.evaluation_sets == cpu.evaluation_sets
        best = dict.fromkeys(full.training_sets, 8)
        assert len(full.cells()) == 9 * 10
        assert len(full.cells(best)) == (9 + 9) * 10
        assert full.base == cpu.base
        assert full.methods["warm_up"]["steps"] == 500


def test_cells_that_the_plan_compares_come_first_and_the_rest_seed_by_seed():
    plan = {"num_registers": [0, 8], "on": "en.dev", "metric": "f1", "seeds": 2, "weights": "last", "delta": 0.01}
    grid = sweep(num_registers=[0, 4, 8], seeds=[0, 1, 2], plan=plan, evaluation_sets=["en.dev.json"])
    assert [(cell.arm, cell.num_registers, cell.seed) for cell in grid.cells()] == [
        ("baseline", 0, 0),
        ("registers", 8, 0),
        ("baseline", 0, 1),
        ("registers", 8, 1),
        ("registers", 4, 0),
        ("registers", 4, 1),
        ("baseline", 0, 2),
        ("registers", 4, 2),
        ("registers", 8, 2),
    ]
