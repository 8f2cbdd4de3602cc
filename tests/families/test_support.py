"""The table of architectures is what was tried: every family is in it, and trying again gives the same."""

from __future__ import annotations

import json

import pytest

from families.conformance import cells_of
from regtune.families import known_families
from regtune.families.listing import KINDS, NOT_TRIED, REFUSED, SUPPORT, WORKS, list_families

RECORDED = json.loads(SUPPORT.read_text(encoding="utf-8"))["families"]


def test_every_family_has_a_row_and_what_was_not_tried_says_so():
    rows = {row[0]: dict(zip(KINDS, row[1:], strict=True)) for row in list_families().rows}
    assert list(rows) == [family.name for family in known_families()]
    assert set(RECORDED) <= set(rows)
    for family in known_families():
        row = rows[family.name]
        if family.refusal is not None or family.name not in RECORDED:
            assert row["heads"] == (NOT_TRIED if family.refusal is None else REFUSED), family.name
            continue
        assert row["places"].split(", ") == list(family.placements), family.name
        assert set(family.relevance) <= set(row["relevance"].split(", ")), family.name
        assert bool(row["caches"]) == bool(family.causal or family.encoder), family.name
        beside = "beside, alone, every_layer, dynamic, static" if family.decoder else ""
        assert row["decoder_registers"] == beside, family.name


@pytest.mark.parametrize("name", ["BERT", pytest.param("BART", marks=pytest.mark.slow)])
def test_trying_again_gives_what_is_recorded(name):
    assert cells_of(name) == RECORDED[name]


def test_what_doesn_t_work_has_a_reason():
    refused = [
        text for cells in RECORDED.values() for said in cells.values() for text in said.values() if text != WORKS
    ]
    assert all(len(text) > 20 for text in refused)
