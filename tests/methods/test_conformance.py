"""Each claimed method × family × task, alone and with registers, does what `regtune methods` says of it."""

from __future__ import annotations

import json

import pytest

from methods.conformance import KINDS, WORKS, Cell, cells, outcome, prepare, tried
from regtune.methods.listing import SUPPORT
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


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: f"{cell.method}-{cell.kind}-{cell.name}")
def test_every_cell_does_what_is_recorded(cell, folder, inputs):
    assert outcome(cell, folder, inputs) == SAID[cell.method][cell.kind][cell.name]
