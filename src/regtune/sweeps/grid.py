"""A sweep as data: arms x numbers of registers x seeds x training sets, resolved to one config for each cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from regtune.config import DataConfig, Epochs, Rate, Registers, RunConfig, Seed, TrainConfig, config_hash, to_dict
from regtune.errors import ConfigError
from regtune.folds import Fold, fold_named
from regtune.recipes import find_recipe, read_recipe, refuse_task_settings
from regtune.records import set_name
from regtune.registry import TASKS
from regtune.sweeps.arms import Arm, Methods, apply_arm, arm_named
from regtune.sweeps.plan import Plan, Weights, metric_named
from regtune.typed import Checked, Range, typed


@dataclass(frozen=True, kw_only=True)
class LearningRates(Checked, section="learning_rates"):
    """Peak learning rates of one arm."""

    learning_rate: Rate
    register_learning_rate: Rate | None = None
    """None: the base config's."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Checked, section="search"):
    """Which learning rates are tried, on held-out training examples; the same for every arm."""

    learning_rates: tuple[Rate, ...]
    register_learning_rates: tuple[Rate, ...]
    """Tried in arms whose registers learn, each with every `learning_rate`, or as `register_rates_at` says."""
    register_rates_at: Literal["every", "best"] = "every"
    """`best`: only at the learning rate that was best in the same arm without registers (`baseline` for `registers`,
    `lora` for `registers+lora`). With as many rates in both lists each arm then has the same number of tries."""
    num_registers: Registers = 8
    """N of the arms with registers in the search."""
    epochs: Epochs = 1.0
    seeds: tuple[Seed, ...] = (0,)
    """Every rate is tried with each; the mean decides."""
    held_out: Annotated[int, Range(2, 10**6)] = 7
    """Every so-manieth group (`Task.group`: a passage, a document) of the first training set is held out to score the
    rates on, counted through class by class where examples have one (`Task.stratum`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rates", "register_learning_rates", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"search.{name} is empty; name at least one.")
            _refuse_repeats(f"search.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands in a sweep: what `sweep.json` says of it."""

    key: str
    """Hash of the resolved config; the name of the run's directory."""
    arm: str
    num_registers: int
    seed: int
    training_set: str
    fold: int | None = None
    """From 1: the one that it is scored on; None in a sweep without folds."""


@dataclass(frozen=True, kw_only=True)
class Cell(Place):
    """One run of a sweep."""

    config: RunConfig

    @property
    def label(self) -> str:
        """For progress bars and lists."""
        fold = "" if self.fold is None else f" fold={self.fold}"
        return f"{self.arm} N={self.num_registers} seed={self.seed}{fold} {self.training_set}"

    def describe(self) -> dict[str, Any]:
        """What `sweep.json` says of the cell."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(Place)}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Checked):
    """Arms x numbers of registers x seeds x training sets, all scored on the same evaluation sets."""

    arms: tuple[str, ...]
    """Names from `regtune.sweeps.arms.ARMS`; arms without registers have one cell for all N."""
    num_registers: tuple[Registers, ...] = ()
    """Values of N for the arms with registers; a 0 stands for the arm `baseline`, which has to be named."""
    seeds: tuple[Seed, ...]
    """Each seeds the new weights, dropout and the order of the data, so that arms are paired by seed."""
    training_sets: Mapping[str, tuple[str, ...]]
    """A short name, and the data sets that are trained on together under it."""
    evaluation_sets: tuple[str, ...] = ()
    """Scored at the end of every cell; by the first one N is chosen for `at_best`. None in a sweep with `folds`."""
    folds: Annotated[int, Range(2, 1000)] | None = None
    """Cross-validation: the sets of each training set are pooled and dealt into so many folds (`regtune.folds`). A cell
    trains on all folds but one and is scored on that one, so every example is scored by models that never saw its text
    or anything of its group. Folds are the same for all arms and seeds."""
    fold_seed: Seed = 0
    """Which examples are in which fold."""
    at_best: tuple[str, ...] = ()
    """More arms, run only at the N whose `registers` cells score best (first set, first metric), once they are done."""
    learning_rates: Mapping[str, LearningRates] = field(default_factory=dict)
    """Rates of single arms where they differ from the base config's."""
    own_arms: Mapping[str, Methods] = field(default_factory=dict)
    """Arms of this sweep's own: a name, and the methods with their settings."""
    methods: Methods = field(default_factory=dict)
    """Settings of methods other than registers, for all arms that use them and don't set them."""
    search: SearchConfig | None = None
    """What `--search` tries."""
    plan: Plan | None = None
    """What is compared first, and how; written into `sweep.json` with the time before the first cell starts."""
    keep_models: Literal["none", "first_seed", "all"] = "first_seed"
    """Finished cells that keep their model folder (MiniLM: 90 MB each); checkpoints always go."""
    base: RunConfig = field(default_factory=RunConfig)
    """What all cells share; its training and evaluation sets, seeds and output_dir are the sweep's business."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_folds()
        for name in ("arms", "seeds", "training_sets", *(() if self.folds else ("evaluation_sets",))):
            if not getattr(self, name):
                raise ConfigError(f"The sweep is empty: {name} holds nothing. Name at least one.")
        for name in ("arms", "at_best", "num_registers", "seeds", "evaluation_sets"):
            _refuse_repeats(name, getattr(self, name))
        _refuse_repeats("arms and at_best together", (*self.arms, *self.at_best))
        _refuse_repeats("evaluation_sets (by their short names)", [set_name(each) for each in self.evaluation_sets])
        for name, sets in self.training_sets.items():
            if not sets:
                raise ConfigError(f"training_sets.{name} names no data set.")
        self._check_arms()
        self._check_search()
        self._check_base()
        if self.plan is not None:
            self._check_plan(self.plan)

    def _check_folds(self) -> None:
        if self.folds is None:
            self.require(self.fold_seed == 0, "fold_seed", "means nothing without folds. Add folds, or take it out.")
            return
        for name, why in (
            ("evaluation_sets", "with folds every example of the training sets is scored; pool these sets with them"),
            ("at_best", "N would be chosen on the examples that are scored; name these arms under arms"),
            (
                "search",
                "it would choose learning rates on examples that are scored; name rates that were found elsewhere",
            ),
        ):
            if getattr(self, name):
                raise ConfigError(f"folds={self.folds} and {name}: {why}.")
        for name, sets in self.training_sets.items():
            if sets:
                fold_named(Fold(sets=tuple(sets), number=1, count=self.folds).name)
            if len(set(sets)) != len(sets):
                raise ConfigError(f"training_sets.{name} names a set twice, so its examples would be in two folds.")

    def _check_arms(self) -> None:
        for name in (*self.arms, *self.at_best, *self.learning_rates):
            self.arm(name)
        with_registers = [name for name in self.arms if self.arm(name).has_registers]
        if with_registers and not any(self.num_registers):
            raise ConfigError(
                f"The arm {with_registers[0]!r} has registers, but num_registers={list(self.num_registers)} holds no "
                "positive number. Add one, for example 8."
            )
        if 0 in self.num_registers and "baseline" not in self.arms:
            raise ConfigError("num_registers holds 0, which is the arm 'baseline'. Add it to arms, or take the 0 out.")
        if self.at_best and "registers" not in self.arms:
            raise ConfigError("at_best needs the arm 'registers', whose best N it takes. Add it to arms.")

    def without_registers(self, arm: str) -> str | None:
        """The arm of this sweep that has the same other methods and no registers, if there is one."""
        wanted = {name: settings for name, settings in self.arm(arm).methods.items() if name != "registers"}
        names = (name for name in (*self.arms, *self.at_best) if dict(self.arm(name).methods) == wanted)
        return next(names, None)

    def _check_search(self) -> None:
        if self.search is None or self.search.register_rates_at == "every":
            return
        for name in (*self.arms, *self.at_best):
            if self.arm(name).learns_registers and self.without_registers(name) is None:
                raise ConfigError(
                    f"search.register_rates_at='best' takes the learning rate of the same arm without registers, and "
                    f"this sweep has none for {name!r}. Add it to arms, or set register_rates_at: every."
                )

    def _check_base(self) -> None:
        plain, fresh = self.base.data, DataConfig()
        if plain.train != fresh.train:
            raise ConfigError(f"base.data.train={list(plain.train)}: name training sets under training_sets instead.")
        if plain.eval != fresh.eval:
            raise ConfigError(
                f"base.data.eval={list(plain.eval)} and evaluation_sets={list(self.evaluation_sets)}: every arm has to "
                "be scored on the same sets, so name them once, under evaluation_sets."
            )
        if self.base.methods:
            raise ConfigError(
                f"base.methods={sorted(self.base.methods)}: name an arm that uses them, under own_arms, and settings "
                "that all arms share under methods."
            )
        if (self.base.training.seed, self.base.training.data_seed) != (TrainConfig().seed, TrainConfig().data_seed):
            raise ConfigError("base.training.seed and data_seed come from seeds; take them out of base.")

    def _check_plan(self, plan: Plan) -> None:
        """Refuses a plan that these cells can't carry out."""
        if plan.arm == "baseline" or plan.arm not in (*self.arms, *self.at_best):
            arms = ", ".join(name for name in (*self.arms, *self.at_best) if name != "baseline")
            raise ConfigError(f"plan.arm={plan.arm!r} is none of the sweep's arms beside baseline: {arms or 'none'}.")
        if "baseline" not in self.arms:
            raise ConfigError("A plan compares an arm with 'baseline'. Add it to arms.")
        missing = [n for n in plan.compared if n not in self.num_registers]
        if missing or bool(plan.compared) != self.arm(plan.arm).has_registers:
            has = (
                f"num_registers={list(self.num_registers)}"
                if self.arm(plan.arm).has_registers
                else "one cell for all N"
            )
            raise ConfigError(
                f"plan.num_registers={list(plan.num_registers)}, but the arm {plan.arm!r} has {has}. Name the N that "
                "are compared first; none for an arm without registers."
            )
        pools = (Fold(sets=tuple(sets)).name for sets in self.training_sets.values())
        sets = [set_name(each) for each in (pools if self.folds else self.evaluation_sets)]
        if plan.on not in sets:
            raise ConfigError(f"plan.on={plan.on!r} is no evaluation set of this sweep; it has {', '.join(sets)}.")
        if plan.training_set not in self.training_sets and (plan.training_set or len(self.training_sets) > 1):
            raise ConfigError(
                f"plan.training_set={plan.training_set!r} must be one of {', '.join(self.training_sets)}: a plan is "
                "about the runs that were trained on one of them."
            )
        if plan.seeds > len(self.seeds):
            raise ConfigError(f"plan.seeds={plan.seeds}, but the sweep has {len(self.seeds)} seeds. Add seeds.")
        rule: Weights = "last" if self.base.training.checkpoint == "last" else "held_out"
        if plan.weights != rule:
            raise ConfigError(
                f"plan.weights={plan.weights!r}, but base.training.checkpoint={self.base.training.checkpoint!r} scores "
                f"{rule!r}. Change one of them."
            )
        metric = metric_named(plan.metric, TASKS.get(self.base.task).metrics)
        most = metric.bounds[1] - metric.bounds[0]
        if plan.delta >= most:
            raise ConfigError(
                f"plan.delta={plan.delta:g} must be below {most:g} for {metric.title}; one point is 0.01."
            )

    def cells(self, best: Mapping[str, int] | None = None) -> tuple[Cell, ...]:
        """All cells, those that the plan compares first; each part by seed, so that one cut short has whole pairs.

        Args:
            best: training set to its best N; without it the arms of `at_best` have no cells yet.
        """
        found: dict[str, Cell] = {}
        for cell in self._expand(best or {}):
            if cell.key in found:
                raise ConfigError(
                    f"The cells '{found[cell.key].label}' and '{cell.label}' have the same config: one "
                    "run with two names. Take one of the arms out, or check base.registers."
                )
            found[cell.key] = cell
        return tuple(sorted(found.values(), key=lambda cell: not self._is_planned(cell)))

    def _is_planned(self, cell: Cell) -> bool:
        plan = self.plan
        if plan is None or cell.training_set != (plan.training_set or next(iter(self.training_sets))):
            return False
        own = cell.arm == plan.arm and (cell.num_registers in plan.compared or not plan.compared)
        return (own or cell.arm == "baseline") and cell.seed in self.seeds[: plan.seeds]

    def _expand(self, best: Mapping[str, int]) -> Iterator[Cell]:
        positive = [n for n in self.num_registers if n]
        for training_set in self.training_sets:
            extra = [(arm, [best[training_set]]) for arm in self.at_best if training_set in best]
            every: Sequence[int | None] = range(1, self.folds + 1) if self.folds else (None,)
            for seed, fold in product(self.seeds, every):
                for arm, sizes in [*((arm, positive) for arm in self.arms), *extra]:
                    for n in sizes if self.arm(arm).has_registers else [0]:
                        yield self.cell(arm, n, seed=seed, training_set=training_set, fold=fold)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return arm_named(name, self.own_arms)

    def cell(self, arm: str, num_registers: int, *, seed: int, training_set: str, fold: int | None = None) -> Cell:
        """One cell with its resolved config."""
        rates = self.learning_rates.get(arm)
        training = dataclasses.replace(self.base.training, seed=seed, data_seed=seed)
        if rates is not None:
            given = {key: value for key, value in dataclasses.asdict(rates).items() if value is not None}
            training = dataclasses.replace(training, **given)
        train, evaluate = tuple(self.training_sets[training_set]), tuple(self.evaluation_sets)
        if fold is not None:
            assert self.folds is not None
            own = Fold(sets=train, number=fold, count=self.folds, seed=self.fold_seed)
            train, evaluate = (dataclasses.replace(own, rest=True).name,), (own.name,)
        data = dataclasses.replace(self.base.data, train=train, eval=evaluate)
        base = dataclasses.replace(self.base, output_dir=Path("."), data=data, training=training)
        config = apply_arm(base, self.arm(arm), num_registers, self.methods)
        return Cell(
            arm=arm,
            num_registers=num_registers,
            seed=seed,
            training_set=training_set,
            fold=fold,
            config=config,
            key=config_hash(config),
        )


def _refuse_repeats(name: str, values: Sequence[Hashable]) -> None:
    repeated = sorted({str(value) for value in values if list(values).count(value) > 1})
    if repeated:
        raise ConfigError(f"{name} names {', '.join(repeated)} more than once. Name each one once.")


# Recipes: one YAML file with the base config (its difference from the defaults) and the axes of the grid


def load_sweep(name: str | Path) -> SweepConfig:
    """Reads a sweep recipe.

    Args:
        name: the file, or the bare name of one in `./recipes`, with or without `.yaml`.

    Raises:
        ConfigError: as `load_recipe`, and for axes that are empty, repeated or of the wrong type.
    """
    path = find_recipe(name)
    return sweep_from_dict(read_recipe(path), str(path))


def sweep_from_dict(content: Mapping[str, Any], where: str) -> SweepConfig:
    """The sweep that a YAML file or `sweep.json` describes; `where` names it in errors."""
    refuse_task_settings(content.get("base"), f"{where}: base")
    return typed(SweepConfig, dict(content), where)


def sweep_to_dict(sweep: SweepConfig) -> dict[str, Any]:
    """The sweep as plain JSON types; `sweep_from_dict` gives it back."""
    plain = to_dict(sweep)
    plain["base"]["data"]["train"] = list(RunConfig().data.train)
    return plain
