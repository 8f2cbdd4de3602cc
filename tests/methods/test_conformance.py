"""Each claimed method × family × task, alone and with registers, does what `regtune methods` says of it."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch

import regtune
from methods.conformance import KINDS, WORKS, Cell, cells, outcome, prepare, tried
from regtune.config import RunConfig
from regtune.errors import ConfigError
from regtune.methods.listing import SUPPORT
from regtune.methods.used import methods_of
from regtune.registers.sinks import add_sink_logits, sinks_in
from regtune.registry import METHODS
from regtune.session import SharedInputs

SAID = json.loads(SUPPORT.read_text())["cells"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module")
def inputs():
    return SharedInputs()


def test_every_cell_is_on_record():
    expected = {}
    for cell in cells():
        expected.setdefault(cell.method, {}).setdefault(cell.kind, set()).add(cell.name)
    said = {
        method: {k: set(cells) for k, cells in kinds.items()} for method, kinds in SAID.items() if method in tried()
    }
    assert said == expected
    assert [name for name in METHODS if METHODS.origin(name) == "built in" and name in tried()] == list(said)
    assert all(set(kinds) == set(KINDS) for kinds in SAID.values())


def test_a_method_is_trained_saved_opened_and_scored_as_recorded(folder, inputs):
    cell = Cell("lora", "BERT", "qa", registers=True)
    assert outcome(cell, folder, inputs) == SAID["lora"]["BERT"]["qa+registers"] == WORKS


def test_what_is_recorded_as_refused_is_refused(folder, inputs):
    cell = Cell("bitfit", "ModernBERT", "classify", registers=False)
    assert outcome(cell, folder, inputs) == SAID["bitfit"]["ModernBERT"]["classify"]
    assert "has no biases" in SAID["bitfit"]["ModernBERT"]["classify"]


def said_of(pair):
    """Why two methods exclude each other; nothing if they don't."""
    try:
        methods_of(RunConfig(methods={name: {} for name in pair}))
    except ConfigError as error:
        return str(error)
    return ""


def run_together():
    """Pairs of methods that don't exclude each other; registers, whose pairs are cells, aside."""
    return {pair for pair in itertools.combinations([n for n in tried() if n != "registers"], 2) if not said_of(pair)}


def test_methods_that_would_undo_each_other_exclude_each_other_and_no_others_do():
    base = {name: METHODS.get(name).base for name in tried()}
    excluded = [{"kept"}, {"kept", "frozen"}, {"kept", "moved"}, {"kept", "changed"}, {"frozen", "later"}]
    pairs = set(itertools.combinations([name for name in tried() if name != "registers"], 2))
    together = run_together()
    assert together == {pair for pair in pairs if {base[name] for name in pair} not in excluded}
    assert ("linear_probe", "lp_ft") not in together
    for first, second in pairs - together:
        said = said_of((first, second))
        assert re.search(rf"({first} and {second}|{second} and {first}) exclude each other", said)
        assert said.endswith("Take one of the two out of the run.")


def assert_together(pair, folder, inputs):
    """Two methods on the tiny BERT do what one alone can't do there, or work."""
    refused = [said for name in pair if (said := SAID[name]["BERT"]["classify"]) != WORKS]
    said = outcome(Cell("+".join(pair), "BERT", "classify", registers=False), folder, inputs)
    assert numberless(said) in map(numberless, refused or [WORKS])


def numberless(said):
    """A refusal may count what the other method has added."""
    return re.sub(r"\d+", "N", said)


@pytest.mark.parametrize("pair", [("lp_ft", "lora"), ("lp_ft", "warm_up"), ("linear_probe", "warm_up")], ids="+".join)
def test_methods_that_do_not_exclude_each_other_run_together(pair, folder, inputs):
    assert_together(pair, folder, inputs)


@pytest.mark.slow
def test_all_methods_that_do_not_exclude_each_other_run_together(folder, inputs):
    for pair in sorted(run_together()):
        assert_together(pair, folder, inputs)


# Adapters on a model that has sink logits already


@pytest.fixture(scope="module")
def folder_with_sinks(tmp_path_factory):
    """The same tiny models, each with a sink a head that takes a third of what one key of score 0 has."""
    folder = prepare(tmp_path_factory.mktemp("sinks"))
    for kind, task in (("BERT", "classify"), ("ModernBERT", "classify"), ("Llama", "lm")):
        place = folder / f"{KINDS[kind]}-{task}"
        session = regtune.open(place, task=task)
        add_sink_logits(session.model, share=0.25).save_pretrained(place)
    return folder


def assert_on_sinks(cell, folder, inputs):
    """An adapter on a base with sinks does what it does on one without, and the base's sinks come back with it."""
    said = outcome(cell, folder, inputs)
    name = cell.name
    assert numberless(said) == numberless(SAID[cell.method][cell.kind][name])
    if said == WORKS:
        sinks = sinks_in(regtune.open(folder / "run").model)
        assert len(sinks) == 3
        start = sinks_in(regtune.open(folder / f"{KINDS[cell.kind]}-{cell.task}", task=cell.task).model)
        assert all(torch.equal(one.logits, other.logits) for one, other in zip(sinks, start, strict=True))


ADAPTERS = [name for name in tried() if METHODS.get(name).base == "kept"]


@pytest.mark.parametrize("registers", [False, True])
def test_lora_is_trained_saved_opened_and_scored_on_a_model_with_sink_logits(registers, folder_with_sinks, inputs):
    assert_on_sinks(Cell("lora", "BERT", "classify", registers=registers), folder_with_sinks, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BERT", "ModernBERT", "Llama"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_every_adapter_goes_onto_a_model_with_sink_logits(method, kind, folder_with_sinks, inputs):
    task = "lm" if kind == "Llama" else "classify"
    for registers in (False, True):
        assert_on_sinks(Cell(method, kind, task, registers=registers), folder_with_sinks, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: f"{cell.method}-{cell.kind}-{cell.name}")
def test_every_cell_does_what_is_recorded(cell, folder, inputs):
    assert outcome(cell, folder, inputs) == SAID[cell.method][cell.kind][cell.name]
