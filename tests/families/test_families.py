"""The table of architectures, and families from outside."""

from __future__ import annotations

import dataclasses

import pytest

from regtune.errors import ConfigError
from regtune.families import find_family, known_families
from regtune.families.bert import BERT
from regtune.registry import FAMILIES


@pytest.fixture
def outside(monkeypatch):
    """A table whose additions are forgotten afterwards."""
    monkeypatch.setattr(FAMILIES, "_added", {})
    return FAMILIES


class Config:
    model_type = "ernie"


def test_every_model_type_belongs_to_one_family():
    claimed = [model_type for family in known_families() for model_type in family.model_types]
    assert len(claimed) == len(set(claimed))
    assert [family.name for family in known_families()] == list(FAMILIES)


def test_a_family_from_outside_is_found(outside):
    assert find_family(Config()) is None
    outside.add(dataclasses.replace(BERT, name="Ernie", model_types=("ernie",)))
    assert find_family(Config()).name == "Ernie"


def test_a_family_from_outside_cannot_take_a_model_type_that_is_taken(outside):
    outside.add(dataclasses.replace(BERT, name="My BERT"))
    with pytest.raises(ConfigError, match=r"'My BERT' .* claims model_type='bert', which is 'BERT''s"):
        find_family(Config())
