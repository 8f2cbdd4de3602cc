"""Every part computes where the model is, and finds there what it finds on the processor."""

import math

import pytest

from analyses.test_inspect import QUICK
from elsewhere import moved, second_device
from regtune.config import RegisterConfig
from regtune.interfaces import Examples
from regtune.records import plain
from regtune.registers.surgery import add_registers
from regtune.registry import ANALYSES
from regtune.session import Session
from regtune.tasks.qa.task import QASettings, QuestionAnswering
from tiny import tiny_model
from tiny_tokenizer import examples, tiny_tokenizer

SETTINGS = QUICK | {"explanations": {"show": False}}


def session():
    model = tiny_model("bert", attention="sdpa", max_position_embeddings=128)
    model = add_registers(model, RegisterConfig(num_registers=2, init_std=0.5)).eval()
    return Session(name="m", model=model, reader=tiny_tokenizer(), task=QuestionAnswering(), task_settings=QASettings())


def measured(name, one):
    asked = Examples(items=tuple(examples(6)), names=("made up",))
    analysis = ANALYSES.get(name)
    return plain(analysis.measure(one, one.rows(asked), asked, analysis.settings(**SETTINGS.get(name, {}))))


def assert_same(here, there, path=""):
    if isinstance(here, dict):
        assert here.keys() == there.keys(), path
        for name in here:
            if name not in ("seconds", "p_value", "p_adjusted"):  # rank tests see the sign of a rounding error
                assert_same(here[name], there[name], f"{path}.{name}")
    elif isinstance(here, list):
        assert len(here) == len(there), path
        for place, pair in enumerate(zip(here, there, strict=True)):
            assert_same(*pair, f"{path}[{place}]")
    elif isinstance(here, float) and math.isfinite(here):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4), path


@pytest.mark.parametrize("name", list(ANALYSES))
def test_a_part_runs_on_the_models_device_and_finds_the_same(name):
    here = measured(name, session())
    other = session()
    moved(other.model)
    with second_device() as products:
        there = measured(name, other)
        assert next(other.model.parameters()).device == other.device
    assert products == [], "these were computed on the processor"
    assert_same(here, there)
