"""Impossible configurations are refused at construction, with the values in the message."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.config import (
    DataConfig,
    RegisterConfig,
    RunConfig,
    TrainConfig,
    config_hash,
    to_dict,
)
from regtune.errors import ConfigError, RegtuneError, unknown_name
from regtune.methods.warm_up import WarmUpSettings
from regtune.registry import ANALYSES, METHODS, TASKS
from regtune.sweeps.grid import LearningRates, SearchConfig, SweepConfig
from regtune.sweeps.ray import ClusterConfig
from regtune.tasks.qa.settings import QASettings
from regtune.typed import hints_of, problem


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RegisterConfig, {"num_registers": -1}, "num_registers=-1"),
        (RegisterConfig, {"num_registers": True}, "num_registers=True must be a whole number"),
        (RegisterConfig, {"init_std": 0.0}, r"registers\.init_std=0\.0 must be a number in \(0, 1,000,000\]"),
        (RegisterConfig, {"init_std": float("nan")}, "init_std=nan"),
        (RegisterConfig, {"init": "zeros", "position": "none"}, "num_registers=8 with .* makes identical registers"),
        (RegisterConfig, {"init": "sep", "position": "none"}, "identical registers"),
        (
            RegisterConfig,
            {"num_registers": 1, "init": "zeros", "position": "none", "trainable": False},
            "registers that are always zero",
        ),
        (DataConfig, {"eval": ()}, r"data\.eval=\(\) is empty"),
        (DataConfig, {"max_length": 8}, "max_length=8"),
        (QASettings, {"stride": -1}, "stride=-1"),
        (QASettings, {"stride": 384}, r"settings\.stride=384 must be smaller than max_length=384"),
        (QASettings, {"max_question_length": 0}, "max_question_length=0"),
        (DataConfig, {"max_train_examples": 0}, "max_train_examples=0"),
        (TrainConfig, {"epochs": 0.0}, r"epochs=0\.0"),
        (TrainConfig, {"batch_size": 0}, "batch_size=0"),
        (TrainConfig, {"learning_rate": -1e-5}, "learning_rate=-1e-05"),
        (TrainConfig, {"register_learning_rate": float("inf")}, "register_learning_rate=inf"),
        (TrainConfig, {"warmup_ratio": 1.0}, r"training\.warmup_ratio=1\.0 must be a number in \[0, 1\)"),
        (TrainConfig, {"save_total_limit": 0}, "save_total_limit=0"),
        (QASettings, {"top_k": 0}, "top_k=0"),
        (QASettings, {"max_answer_tokens": -3}, "max_answer_tokens=-3"),
        (TrainConfig, {"seed": -1}, r"training\.seed=-1 must be a whole number from 0 to 4,294,967,295"),
        (TrainConfig, {"data_seed": 2**32}, "data_seed=4294967296 must be"),
        (TrainConfig, {"batch_size": 10**30}, "batch_size=1000000000000000000000000000000 must be .* to 1,000,000"),
        (TrainConfig, {"batch_size": 10**5000}, "batch_size=a whole number of about"),
        (TrainConfig, {"epochs": 1e308}, r"epochs=1e\+308 must be a number in \(0, 10,000\]"),
        (TrainConfig, {"push_to_hub": "a\ud800"}, "push_to_hub=.* must be text without NUL that UTF-8 can hold"),
        (QASettings, {"null_threshold": float("nan")}, "null_threshold=nan must be a number"),
        (RunConfig, {"output_dir": Path("a\0b")}, "output_dir=.* must be a path"),
        (RunConfig, {"trust_remote_code": "other"}, "must repeat the model's name"),
    ],
)
def test_impossible_values_are_refused_with_the_value(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_one_register_of_zeros_without_a_position_is_not_symmetric_and_allowed():
    assert RegisterConfig(num_registers=1, init="zeros", position="none").num_registers == 1
    assert RegisterConfig(num_registers=0).num_registers == 0


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RegisterConfig().num_registers = 3
    with pytest.raises(TypeError):
        RegisterConfig(3)


def test_the_defaults_are_the_papers_registers():
    config = RegisterConfig()
    assert (config.placement, config.position, config.init, config.init_std, config.layer_norm, config.depth) == (
        "prefix",
        "learned",
        "normal",
        0.02,
        False,
        "input",
    )


def test_the_hash_follows_every_setting_but_the_place():
    base = RunConfig()
    assert config_hash(base) == config_hash(dataclasses.replace(base, output_dir=Path("elsewhere")))
    changed = dataclasses.replace(base, registers=RegisterConfig(num_registers=9))
    assert config_hash(base) != config_hash(changed)
    assert to_dict(base)["data"]["train"] == ["embedded:train"]


def test_a_wrong_name_is_answered_with_the_nearest_and_all_names():
    error = unknown_name("metric", "squat", ["squad", "mlqa"])
    assert str(error) == "Unknown metric 'squat'. Did you mean 'squad'? Available: mlqa, squad."
    assert isinstance(error, RegtuneError)


def test_no_setting_takes_a_value_of_another_kind():
    """Asked of the rule itself, because under pytest a constructor's types are looked at before it runs."""
    tried = 0
    for kind in (RegisterConfig, DataConfig, TrainConfig, QASettings, WarmUpSettings, RunConfig):
        for name, hint in hints_of(kind).items():
            for value in (float("nan"), float("inf"), True, "x\ud800", b"x", [], 10**400, object()):
                if value is not True or hint is not bool:
                    tried += 1
                    assert problem(hint, value), (name, value)
            assert not problem(hint, getattr(kind(), name))
    assert tried > 250


NEEDED = {
    SearchConfig: {"learning_rates": (1e-4,), "register_learning_rates": (1e-3,)},
    SweepConfig: {
        "arms": ("baseline",),
        "seeds": (0,),
        "training_sets": {"t": ("embedded:train",)},
        "evaluation_sets": ("embedded:dev",),
    },
    LearningRates: {"learning_rate": 1e-4},
}
KINDS = [RegisterConfig, DataConfig, TrainConfig, RunConfig, ClusterConfig, *NEEDED]
KINDS += list(dict.fromkeys(room.get(name).settings for room in (TASKS, METHODS, ANALYSES) for name in room))
FIELDS = [(kind, field.name) for kind in dict.fromkeys(KINDS) for field in dataclasses.fields(kind)]
ODD = [
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    0,
    10**30,
    10**5000,
    1e308,
    -1e-320,
    True,
    None,
    "",
    "x\ud800",
    b"x",
]
ODD += [(), ("",), (float("nan"),), (1, 1), [], {}, {"": None}, {"a": {"b": float("nan")}}, object(), Path("a\0")]


@pytest.fixture
def unwatched(monkeypatch):
    """Constructors as a user has them: without the look at types that conftest puts in front."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(kind, name, value):
    """Whether a setting is refused by a `ConfigError` that names it; any other error passes through."""
    try:
        made = kind(**{**NEEDED.get(kind, {}), name: value})
    except ConfigError as error:
        said = str(error)
    else:
        json.dumps(to_dict(made), allow_nan=False)  # what is accepted can be recorded
        return False
    assert name in said or said.startswith("Unknown ")  # a name that is in no table
    assert len(said) < 4_100
    return True


def test_every_setting_of_every_config_refuses_what_it_cant_be(unwatched):
    assert len(FIELDS) > 100
    let_in = [(kind.__name__, name, odd) for kind, name in FIELDS for odd in ODD[:3] if not refused(kind, name, odd)]
    assert let_in == [], "no setting can be NaN or infinite"
    for kind, name in FIELDS:
        found = [refused(kind, name, odd) for odd in ODD]
        assert sum(found) >= len(ODD) // 3, (kind.__name__, name)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from(FIELDS),
    st.one_of(
        st.floats(),
        st.integers(),
        st.booleans(),
        st.text(),
        st.binary(max_size=3),
        st.none(),
        st.lists(st.floats() | st.text(), max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), st.floats() | st.none(), max_size=2),
    ),
)
def test_no_value_of_any_kind_ends_a_constructor_in_another_error(field, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        refused(*field, value)
