"""Each claimed method × family × task, alone and with registers, does what `regtune methods` says of it."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from methods.conformance import KINDS, WORKS, Cell, cells, outcome, prepare, tried
from regtune.config import RunConfig
from regtune.errors import ConfigError
from regtune.methods.listing import SUPPORT
from regtune.methods.used import methods_of
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


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: f"{cell.method}-{cell.kind}-{cell.name}")
def test_every_cell_does_what_is_recorded(cell, folder, inputs):
    assert outcome(cell, folder, inputs) == SAID[cell.method][cell.kind][cell.name]
