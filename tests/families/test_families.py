"""The table of architectures, and families from outside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModel

from families.conformance import model_of
from regtune.config import RegisterConfig
from regtune.errors import ConfigError, UnsupportedModelError
from regtune.families import family_of, find_family, known_families
from regtune.families._family import modules_at
from regtune.families.encoders.bert import BERT
from regtune.registers.surgery import add_registers, backbone_of, find_registers
from regtune.registry import FAMILIES
from regtune.testing.subject import make_inputs

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


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


@pytest.mark.parametrize("family", [one for one in known_families() if one.refusal is None], ids=lambda one: one.name)
def test_norms_are_named_in_the_order_in_which_a_layer_calls_them_those_of_heads_last(family):
    model, called = model_of(family.name, ""), []
    backbone = backbone_of(model)
    (first, *_) = modules_at(backbone, *family.within_layers())
    for path in family.norms:
        of_heads = path.endswith((".q_norm", ".k_norm"))
        first.get_submodule(path).register_forward_hook(lambda *_, one=(of_heads, path): called.append(one))
    with torch.no_grad():
        model(**make_inputs(model)[0])
    once = called[: len(family.norms)]  # ALBERT's first layer is all of them
    assert tuple(path for _, path in sorted(once, key=lambda one: one[0])) == family.norms


BEHIND = [one for one in known_families() if one.refusal is None and not (one.joins_words or one.masks_first)]


def read_of_registers(family, **settings):
    """A model in training, each dropout dropping half, and its registers behind the embeddings."""
    model, seen = model_of(family.name, ""), []
    add_registers(model, RegisterConfig(num_registers=3, init_std=1.0, **settings))
    backbone = backbone_of(model)
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    backbone.get_submodule(family.embeddings).register_forward_hook(
        lambda _, args, output: seen.append(backbone.registers.registers_of(output))
    )
    with torch.no_grad():
        model(**make_inputs(model)[0])
    return backbone, seen[0]


@pytest.mark.parametrize("family", BEHIND, ids=lambda one: one.name)
def test_registers_join_behind_the_dropout_unless_they_pass_the_norm_that_it_is_behind(family):
    backbone, seen = read_of_registers(family)
    assert torch.equal(seen, backbone.registers(len(seen)))
    if family.norm is None:
        assert family.dropout is None, "nothing would ever pass it"
        return
    backbone, seen = read_of_registers(family, layer_norm=True)
    passed = backbone.get_submodule(family.norm).forward(backbone.registers(1)).expand_as(seen)
    if family.dropout is None:
        assert torch.allclose(seen, passed)
    else:
        kept = seen != 0
        assert 0.2 < kept.float().mean() < 0.8
        assert torch.allclose(seen[kept], 2 * passed[kept], rtol=1e-4)


@pytest.mark.parametrize("family", [one for one in known_families() if one.refusal is None], ids=lambda one: one.name)
def test_the_norm_behind_the_last_layer_is_named_where_there_is_one(family):
    model, behind = model_of(family.name, ""), []
    backbone = backbone_of(model)
    layers = list(modules_at(backbone, *family.within_layers()))
    within = {part for layer in layers for part in layer.modules()}
    layers[-1].register_forward_hook(lambda *_: behind.clear())
    for path, module in backbone.named_modules():
        if module not in within and type(module).__name__.lower().endswith("norm"):
            module.register_forward_hook(lambda *_, path=path: behind.append(path))
    with torch.no_grad():
        model(**make_inputs(model)[0])
    assert (behind or [None])[0] == family.final_norm


def test_a_family_from_outside_is_found(outside):
    assert find_family(Config()) is None
    outside.add(dataclasses.replace(BERT, name="Ernie", model_types=("ernie",)))
    assert find_family(Config()).name == "Ernie"


def test_a_family_from_outside_cannot_take_a_model_type_that_is_taken(outside):
    outside.add(dataclasses.replace(BERT, name="My BERT"))
    with pytest.raises(ConfigError, match=r"'My BERT' .* claims model_type='bert', which is 'BERT''s"):
        find_family(Config())


def test_another_family_of_the_same_name_is_refused_and_the_same_once_more_is_not(outside):
    mine = dataclasses.replace(BERT, name="Ernie", model_types=("ernie",))
    outside.add(mine)
    outside.add(dataclasses.replace(mine))
    with pytest.raises(ConfigError, match="'Ernie' exists already"):
        outside.add(dataclasses.replace(mine, layers="blocks"))


def test_a_family_that_is_lent_is_gone_afterwards(outside):
    with outside.lent(dataclasses.replace(BERT, name="Ernie", model_types=("ernie",))):
        assert find_family(Config()).name == "Ernie"
    assert find_family(Config()) is None


def test_a_path_that_does_not_exist_is_named(outside):
    model = AutoModel.from_config(AutoConfig.for_model("ernie", **SMALL))
    outside.add(dataclasses.replace(BERT, name="Ernie", model_types=("ernie",), layers="encoder.blocks"))
    with pytest.raises(UnsupportedModelError, match=r"layers='encoder\.blocks', and ErnieModel has no such"):
        add_registers(model)
    assert find_registers(model) is None


def test_an_architecture_that_registers_don_t_fit_says_why():
    with pytest.raises(UnsupportedModelError, match=r"'longformer'.*refused because each token sees a window"):
        family_of(AutoConfig.for_model("longformer"))
    assert family_of(AutoConfig.for_model("longformer"), "parts").name == "Longformer"
    with pytest.raises(UnsupportedModelError, match=r"'block_sparse'; registers need attention_type='original_full'"):
        family_of(AutoConfig.for_model("big_bird"))
    assert family_of(AutoConfig.for_model("big_bird", attention_type="original_full")).name == "BigBird"
