"""Everything that is built in keeps what its noun promises; what doesn't is told with every promise that it breaks."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from regtune.config import RegisterConfig
from regtune.interfaces import Analysis, Attached, Group, Method
from regtune.registers.surgery import add_registers
from regtune.registry import ANALYSES, METHODS, TASKS
from regtune.tasks.classify import Classification
from regtune.testing import BrokenInvariantError, check_analysis, check_method, check_task
from tiny import tiny_model
from tiny_tasks import WRITERS, save_examples
from tiny_tokenizer import save_tiny, tiny_tokenizer

QUICK = {
    "artefacts": {"probes": False},
    "registers": {"resamples": 200, "hows": ("mask",)},
    "heads": {"examples": 2},
    "faithfulness": {"texts": 2, "limit_texts": 1, "random_draws": 2, "methods": ("random",), "max_groups": 2},
}
"""Settings with which a part takes a second."""
MODELS = {"lm": "decoder", "instruct": "decoder"}
ELSEWHERE = {"qlora", "mutor", "prompt_tuning", "p_tuning", "mpt", "prefix", "llama_adapter"}
"""Methods that need more positions than the tiny model has, another architecture or a library: see tests/methods."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    save_tiny(folder / "plain")
    model = add_registers(tiny_model("bert"), RegisterConfig(num_registers=2))
    model.save_pretrained(folder / "registers")
    tiny_tokenizer().save_pretrained(folder / "registers")
    save_tiny(folder / "decoder", "llama", head="causal-lm")
    return folder


def data_of(place, task):
    """The labelled file of a task."""
    return save_examples(task, place, 4 if task == "qa" else 7)


@pytest.mark.parametrize("name", ["qa", *WRITERS])
def test_every_task_keeps_its_promises(place, name):
    check_task(name, data_of(place, name), place / MODELS.get(name, "plain"))


@pytest.mark.grid
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ELSEWHERE])
def test_every_method_keeps_its_promises(place, name):
    check_method(name, place / "plain")


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_keeps_its_promises(place, name):
    settings = ANALYSES.get(name).settings(**QUICK.get(name, {}))
    check_analysis(name, place / "registers", [data_of(place, "qa")], settings=settings, limit=3)


# What doesn't


@pytest.fixture
def added(monkeypatch):
    """Registers something for one test."""

    def add(registry, item):
        monkeypatch.setattr(registry, "_added", {**registry._added})
        registry.add(item)

    return add


class Careless(Classification):
    name = "careless"

    def read(self, names, settings, *, limit=None, training=False):
        found = super().read(names, settings, training=training)
        return dataclasses.replace(found, items=tuple(dataclasses.replace(item, id="x") for item in found.items))

    def decode(self, rows, outputs, examples, session):
        return super().decode(rows, outputs, examples, session)[::-1]

    def perturb(self, example, change):
        return dataclasses.replace(example, text=f"{example.text}!", id=f"{example.id}!")

    def score(self, predictions, examples):
        return {name: np.append(values, 2.0) for name, values in super().score(predictions, examples).items()}


def test_a_careless_task_is_told_what_it_breaks(place, added):
    added(TASKS, Careless)
    with pytest.raises(BrokenInvariantError) as caught:
        check_task("careless", data_of(place, "classify"), place / "plain")
    for told in (
        "ids must be unique; 6 come again",
        "limit=1 must give",
        "needs a finite number for each of 7",
        "noise must keep examples and their ids",
        "noise of strength 0 must change no text",
    ):
        assert told in str(caught.value)


class Bump(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.ones(1))

    def forward(self, *_):
        return None


@dataclasses.dataclass
class Loose:
    step: float = 1.0


class Left(Attached):
    def disabled(self):
        return nullcontext()

    def save(self, folder):
        torch.save({}, folder / "weights.bin")


class Sloppy(Method):
    name = "sloppy"
    title = "moves a bias and leaves it so"
    settings = Loose

    def attach(self, session, settings):
        with torch.no_grad():
            next(session.model.qa_outputs.parameters()).add_(1.0)
        session.model.bump = Bump()
        return Left()

    def groups(self, model, settings, training):
        return [Group(name="strange", parameters=(nn.Parameter(torch.ones(1)), model.bump.by), learning_rate=0.0)]

    def label(self, settings):
        return " "


def test_a_sloppy_method_is_told_what_it_breaks(place, added):
    added(METHODS, Sloppy)
    with pytest.raises(BrokenInvariantError) as caught:
        check_method("sloppy", place / "plain")
    for told in (
        "settings must be a frozen dataclass",
        "label must say",
        "disabled() must give the model's own outputs, bit for bit",
        "group 'strange': 1 parameters aren't the model's",
        "learning rate 0.0",
        "no gradient reaches",
        "its own weights have no effect",
        "save writes ['weights.bin']",
        "detach leaves other keys: ['bump.by']",
        "detach leaves other weights: ['qa_outputs.weight']",
    ):
        assert told in str(caught.value)


class Restless(Analysis):
    name = "restless"
    title = "another number each time"
    settings = RegisterConfig
    needs = frozenset({"patience"})

    def measure(self, session, rows, examples, settings):
        session.model.train()
        session.model.register_forward_hook(lambda *_: None)
        return {"measures": {"restless": [float(torch.rand(1)) for _ in examples.items]}}

    def blocks(self, content):
        raise KeyError("nothing")


def test_a_restless_analysis_is_told_what_it_breaks(place, added, monkeypatch):
    added(ANALYSES, Restless)
    monkeypatch.setattr("regtune.analyses.inspection.lacks", lambda *_: "")
    with pytest.raises(BrokenInvariantError) as caught:
        check_analysis("restless", place / "registers", [data_of(place, "qa")])
    for told in ("needs ['patience']", "left as it was", "the same numbers", "blocks: DataError", "must be a block"):
        assert told in str(caught.value)
