"""The one table of architectures: what it says is there is there, and a family is found by what is needed of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from regtune.errors import UnsupportedModelError
from regtune.families import FAMILIES, family_of, find_family
from regtune.families._family import modules_at, submodule

_DECODER = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def with_language_head(kind: str) -> nn.Module:
    if kind in tiny.FAMILIES:
        changes = {"position_biased_input": True} if kind == "deberta-v2" else {}
        return tiny.tiny_model(kind, "masked-lm", **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_DECODER, intermediate_size=48))


@pytest.mark.parametrize("kind", sorted(kind for family in FAMILIES for kind in family.model_types))
def test_every_part_that_a_family_names_is_there(kind):
    model = with_language_head(kind)
    backbone, family = model.base_model, find_family(model.config)
    parts = [family.word_embeddings, family.embeddings, family.norm, family.dropout, family.stack, family.final_norm]
    named = [path for path in (*parts, family.position_embeddings) if path is not None]
    assert [path for path in named if submodule(backbone, path) is None] == []
    depth = len(list(modules_at(backbone, *family.within_layers())))
    assert depth == (1 if family.shared_layers else 3)
    within = [family.attention, family.attention_out, family.feed_forward_in, family.feed_forward_out, family.gated]
    within += [*family.norms, *(f"{family.attention}.{part}" for part in (family.keys, family.values) if part)]
    for path in (path for path in within if path is not None):
        assert len(list(modules_at(backbone, *family.within_layers(path)))) == depth, path
    assert [path for path in family.lm_head if submodule(model, path) is None] == []


def test_a_kind_of_model_is_in_one_family_alone():
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_a_family_is_plain_data():
    for family in FAMILIES:
        assert json.loads(json.dumps(dataclasses.asdict(family)))["name"] == family.name


def test_a_family_is_found_by_what_is_needed_of_it():
    llama, unknown = AutoConfig.for_model("llama"), AutoConfig.for_model("xlnet")
    assert family_of(llama, "relevance") is family_of(llama, "parts") is find_family(llama)
    with pytest.raises(UnsupportedModelError, match=r"not supported for model_type='llama'.*BERT \(bert\)"):
        family_of(llama)
    assert find_family(unknown) is None
    with pytest.raises(UnsupportedModelError, match="no relevance rules for model_type='xlnet'"):
        family_of(unknown, "relevance")
    with pytest.raises(UnsupportedModelError, match="isn't known where model_type='xlnet' keeps"):
        family_of(unknown, "parts")
